"""Run the command line as ``python -m llmtier``."""

from llmtier.cli import main

if __name__ == "__main__":
    main()
