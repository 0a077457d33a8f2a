"""`prometar` and `python -m prometar`."""

import sys


def main() -> int:
    """The entry point. Return the exit status."""
    from prometar.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
