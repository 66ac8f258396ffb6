"""The routing rule, pure: predict what each tier would do now, then choose.

``fit`` replays this very code over labelled prompts and ``serve`` calls it live,
so what was fitted is what runs.
"""
