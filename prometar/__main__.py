"""`python -m prometar`."""

import sys

from prometar.cli.app import main

sys.exit(main())
