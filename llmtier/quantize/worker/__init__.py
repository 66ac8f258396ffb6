"""Scripts that an isolated environment's interpreter runs, started through ``bootstrap.py``.

They import the standard library, that environment's libraries, ``llmtier.core`` and each other; nothing else of
llmtier exists for them. A job arrives as JSON in the first argument; JSON lines of progress leave on standard output.
"""
