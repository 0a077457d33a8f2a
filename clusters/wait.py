"""Wait until the cluster has the CPUs and GPUs that a study needs, then run the command after `--`.

    python clusters/wait.py --gpus 8 -- python tune/search.py --dataset dtd --address auto ...

A study plans the CPUs and GPUs per trial when a stage starts, and requests no machines itself. If no GPU has
joined by then, trials train on CPUs. If no machine is large enough for a trial, the study fails. This script
requests the missing CPUs and GPUs from the autoscaler.
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
        bundles: list[dict[str, int]] = []
        for kind, count in wanted.items():
            bundles += [{kind: 1}] * count  # bundles of one, so that machines of any size fit
        request_resources(bundles=bundles)
        deadline = time.monotonic() + minutes * 60
        last_status = ""
        while True:
            available = ray.cluster_resources()
            missing = [kind for kind, count in wanted.items() if available.get(kind, 0) < count]
            if not missing:
                return
            status = ", ".join(f"{available.get(kind, 0):g} of {wanted[kind]} {kind}s" for kind in missing)
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {minutes:g} minutes the cluster has {status}")
            if status != last_status:
                print(f"waiting: the cluster has {status}", flush=True)
                last_status = status
            time.sleep(1)
    finally:
        request_resources(bundles=[])  # else the autoscaler would keep the machines after the study has ended
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
    wanted: dict[str, int] = {}
    if options.cpus:
        wanted["CPU"] = options.cpus
    if options.gpus:
        wanted["GPU"] = options.gpus
    try:
        wait(wanted, options.minutes)
    except (TimeoutError, ConnectionError, AuthenticationError) as error:
        message = str(error).splitlines()[0]
        if not isinstance(error, TimeoutError):
            message += " (does this process have the cluster's token?)"
        sys.exit(f"error: {message}")
    except RuntimeError as error:  # the cluster uses a different version of Ray or Python
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
    os.execvp(options.command[0], options.command)


if __name__ == "__main__":
    main()
