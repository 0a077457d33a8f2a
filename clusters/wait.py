"""Wait until the cluster has the CPUs and GPUs that a study needs, then run the command after `--`.

    python clusters/wait.py --gpus 8 -- python tune/search.py --dataset dtd --address auto ...

The number of concurrent trials is fixed when a study starts. If the cluster has too few CPUs or GPUs at that
time, too few trials run, or the study fails. This script requests the missing ones from the autoscaler.
"""

import argparse
import logging
import math
import os
import shutil
import sys
import time
from typing import NoReturn


def wait(wanted: dict[str, int], minutes: float) -> None:
    """Block until the cluster has all resources in `wanted`, e.g. {"CPU": 8, "GPU": 8}.

    Raises:
        TimeoutError: resources are missing after `minutes`.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
    try:
        request_resources(bundles=[{kind: 1} for kind, count in wanted.items() for _ in range(count)])
        deadline = time.monotonic() + minutes * 60
        last_status = ""
        while missing := {kind: n for kind, n in wanted.items() if ray.cluster_resources().get(kind, 0) < n}:
            status = ", ".join(
                f"{ray.cluster_resources().get(kind, 0):g} of {n} {kind}s" for kind, n in missing.items()
            )
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {minutes:g} minutes the cluster has {status}")
            if status != last_status:
                print(f"waiting: the cluster has {status}", flush=True)
                last_status = status
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # cancel the request, because trials request machines themselves
        ray.shutdown()


def parse(arguments: list[str]) -> argparse.Namespace:
    """Parse the options (cpus, gpus, minutes) and the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cpus", type=int, default=0, help="CPUs to wait for")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to wait for")
    parser.add_argument("--minutes", type=float, default=30, help="time limit (default: 30)")
    parser.add_argument("command", nargs="+", metavar="-- COMMAND")
    options = parser.parse_args(arguments)
    if min(options.cpus, options.gpus, options.minutes) < 0 or not math.isfinite(options.minutes):
        parser.error("--cpus, --gpus and --minutes must be finite and at least 0")
    return options


def main() -> NoReturn:
    """Wait, then replace this process with the command, so that the command receives the job's signals."""
    from ray.exceptions import AuthenticationError

    options = parse(sys.argv[1:])
    if shutil.which(options.command[0]) is None:  # checked before machines are requested
        sys.exit(f"error: no command '{options.command[0]}' on this machine")
    wanted = {kind: count for kind, count in (("CPU", options.cpus), ("GPU", options.gpus)) if count > 0}
    try:
        wait(wanted, options.minutes)
    except (TimeoutError, ConnectionError, AuthenticationError) as error:
        hint = "" if isinstance(error, TimeoutError) else " (does this process have the cluster's token?)"
        sys.exit(f"error: {str(error).splitlines()[0]}{hint}")
    except RuntimeError as error:  # the cluster uses a different version of Ray or Python
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
    os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
