"""A quiet Ray in this process: started where none runs, or joined by address."""

from __future__ import annotations

import logging
import os
from typing import Any

from prometar.errors import WorkError

# Ray ends a worker that idles for a second; a stream between two epochs would start one anew each time.
_ALWAYS = {"RAY_idle_worker_killing_time_threshold_ms": "600000", "RAY_USAGE_STATS_ENABLED": "0"}
_QUIET = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def start_ray(
    *, address: str | None = None, num_cpus: int | None = None, verbose: bool = False
) -> dict[str, Any]:
    """Start Ray on this machine (nothing listens beyond it), or join the cluster at `address`.

    Returns the cluster's resources, e.g. {"CPU": 2.0}. Does nothing where Ray already runs.

    Raises:
        WorkError: no cluster at `address`.
    """
    for name, value in (_ALWAYS if verbose else _ALWAYS | _QUIET).items():
        os.environ.setdefault(name, value)
    import ray

    if not ray.is_initialized():
        quiet: dict[str, Any] = {} if verbose else {"log_to_driver": False, "logging_level": logging.ERROR}
        local: dict[str, Any] = {} if address else {"include_dashboard": False, "num_cpus": num_cpus}
        try:
            ray.init(address=address or "local", **quiet, **local)
        except (ConnectionError, ValueError) as error:
            raise WorkError(f"cannot join Ray at {address}: {str(error).splitlines()[0]}") from None
    return ray.cluster_resources()
