"""The only part that talks to people."""


def main() -> None:
    """Run the command line."""
    raise NotImplementedError
