"""Entry point of `python -m prometar`."""

import sys

from prometar.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
