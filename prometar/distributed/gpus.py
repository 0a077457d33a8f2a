"""GPUs of Ray's workers."""

import os
import socket

from prometar.errors import StorageError


def only_given_gpus() -> None:
    """Hide all GPUs from a worker to which Ray allocated none. Call it before torch looks for GPUs."""
    import ray

    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def require_given_gpus(noun: str) -> None:
    """
    Args:
        noun: Name of a run in options (`--gpus-per-<noun>`).
    Raises:
        StorageError: torch cannot use the GPU that Ray allocated. The machine is to blame, not the run.
    """
    import ray

    from prometar.device import why_no_gpu

    if ray.get_gpu_ids() and (why := why_no_gpu()):
        raise StorageError(
            f"torch cannot use the GPU of the machine {socket.gethostname()}: {why}. Fix its driver or its "
            f"torch, or pass --gpus-per-{noun} 0."
        )
