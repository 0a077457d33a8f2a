"""`python -m prometar`."""

import sys

from prometar.cli import main

sys.exit(main())
