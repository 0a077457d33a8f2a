"""How much memory the GPUs of Ray's machines have: those of one kind may differ in it.

Ray calls an A100 of 40 GB and one of 80 GB, or a part of one (MIG), by one name.
"""

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

PATIENCE = 60.0  # seconds for machines to tell; others may use their GPUs, or a process start slowly


def least_memory(patience: float = PATIENCE) -> int | None:
    """Bytes of the smallest GPU that Ray gives to workers; None where no machine tells in time."""
    machines = [(node["NodeID"], node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]]
    told = [
        ray.remote(max_calls=1)(_least_here)  # a process that has looked keeps the GPUs that it saw
        .options(
            num_cpus=0,
            num_gpus=int(count),  # each of them is seen
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        .remote()
        for node, count in machines
        if count >= 1
    ]
    in_time, late = ray.wait(told, num_returns=len(told), timeout=patience) if told else ([], [])
    for task in late:
        ray.cancel(task, force=True)
    return min(filter(None, map(_answer, in_time)), default=None)


def _least_here() -> int | None:
    import torch

    numbers = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return min((torch.cuda.get_device_properties(k).total_memory for k in numbers), default=None)


def _answer(task: ray.ObjectRef[int | None]) -> int | None:
    """What a machine has told; None where its GPUs have failed, which a trial will tell."""
    try:
        return ray.get(task)
    except RayError:
        return None
