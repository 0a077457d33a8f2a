"""`prometar` and `python -m prometar`."""

import sys

from prometar.interrupts import end_at_once


def main() -> int:
    """The entry point; returns the exit status."""
    end_at_once()
    from prometar.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
