"""`python -m tests.support.forked SCRIPT ARGS`: the script as it is; only its Ray's workers are forked."""

import runpy
import sys

from tests.support.zygote import forked_workers

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path[0] = ""
    with forked_workers():
        runpy.run_path(sys.argv[0], run_name="__main__")
