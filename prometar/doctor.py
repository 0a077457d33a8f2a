"""What a study would find here: a line for each thing it needs, and whether it would be refused for it."""

import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

import torch

from prometar.backbone.openclip import has_cached, is_tag, load_clip
from prometar.config.settings import DEFAULT_OBJECTIVE
from prometar.data.datasets.catalog import open_dataset
from prometar.data.preparation.check import differences
from prometar.data.splits.objective import problem
from prometar.device import compute_on, why_no_gpu
from prometar.distributed.local_ray import start_ray
from prometar.distributed.placement import plan_resources
from prometar.environment import environment
from prometar.errors import UserError, first_line

GIB = 2**30
LITTLE_DISK = 2 * GIB  # a study of hundreds of trials keeps some MB of each
SHARED_MEMORY = Path("/dev/shm")


class Status(Enum):
    """Of a line; only REFUSED stops a study."""

    OK = "ok"
    NOTE = "note"
    REFUSED = "refused"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: Status
    what: str
    says: str

    def __str__(self) -> str:
        return f"{self.status.value:8}{self.what}: {self.says}"


def examine(
    datasets: Sequence[str],
    data_root: str | None,
    backbone: str,
    pretrained: str | None,
    out: Path,
    address: str | None = None,
) -> Iterator[Finding]:
    """Findings about the study that would be started, the fast ones first.

    Nothing is trained, fetched or written.
    """
    yield _versions()
    yield from gpus()
    yield _disk(out)
    yield weights(backbone, pretrained)
    for name in datasets:
        yield from _tried(f"data set {name}", partial(_dataset, name, data_root))
    yield from _tried("Ray", lambda: ray(start_ray(address=address)))


def _tried(what: str, look: Callable[[], list[Finding]]) -> list[Finding]:
    try:
        return look()
    except UserError as error:
        return [Finding(Status.REFUSED, what, str(error))]


def _versions() -> Finding:
    found = environment()
    names = ("prometar", "torch", "open_clip_torch", "ray", "optuna")
    listed = ", ".join(f"{name} {found[name]}" for name in names)
    return Finding(Status.OK, "versions", f"Python {platform.python_version()}, {listed}")


def gpus() -> list[Finding]:
    """The GPUs that torch sees in this process, and their free memory."""
    if why := why_no_gpu():
        cause, *told = why.split("; ", 1)
        return [Finding(Status.NOTE, "GPU", "; ".join([f"{cause}: trials run on the CPU", *told]))]
    return [_gpu(number) for number in range(torch.cuda.device_count())]


def _gpu(number: int) -> Finding:
    """Refused where nothing can be computed on it: it is another's alone, broken, or too old for torch."""
    what = f"GPU {number}"
    try:
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        compute_on(torch.device("cuda", number))
    except RuntimeError as error:
        return Finding(Status.REFUSED, what, f"trials on it would fail: {first_line(error)}")
    status = Status.OK if free > total / 2 else Status.NOTE
    memory = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    return Finding(status, what, f"{name}, {memory}, CUDA {torch.version.cuda}")


def _disk(out: Path) -> Finding:
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(Status.REFUSED, "disk", f"nothing can be written into {there}: choose another --out")
    free = shutil.disk_usage(there).free
    status = Status.OK if free > LITTLE_DISK else Status.NOTE
    return Finding(status, "disk", f"{free / GIB:.1f} GiB free in {there}")


def weights(backbone: str, pretrained: str | None) -> Finding:
    """Whether the backbone's weights are here; those of a file are read, those of a tag are looked for."""
    what = f"weights of {backbone}"
    try:
        if pretrained is not None and is_tag(backbone, pretrained):
            if has_cached(backbone, pretrained):
                return Finding(Status.OK, what, f"'{pretrained}', in the cache")
            return Finding(
                Status.NOTE, what, f"'{pretrained}' is not in the cache: the first trial fetches it"
            )
        load_clip(backbone, pretrained)
    except UserError as error:
        return Finding(Status.REFUSED, what, str(error))
    return Finding(Status.OK, what, pretrained or "those that come with the package")


def _dataset(name: str, root: str | None) -> list[Finding]:
    """Raises a UserError where it cannot be opened, or not be searched and tested on."""
    dataset = open_dataset(name, root)
    for objective in (DEFAULT_OBJECTIVE, "final") if dataset.train else ():
        problem(objective, dataset, shots=1, seed=1)
    classes, counts = len(dataset.classnames), dataset.counts
    other = differences(name, classes, counts)
    sizes = ", ".join(f"{split} {count}" for split, count in counts.items())
    alone = "" if dataset.train else "for testing alone"
    notes = "; ".join(filter(None, (alone, *other, dataset.note)))
    status = Status.NOTE if other or alone else Status.OK
    return [
        Finding(status, f"data set {name}", f"{classes} classes, {sizes}" + (f" ({notes})" if notes else ""))
    ]


def ray(nodes: Sequence[Mapping[str, float]]) -> list[Finding]:
    """What a study would make of machines' resources.

    Raises:
        UserError: not one trial fits.
    """
    plan = plan_resources(nodes)
    found = [Finding(Status.OK, "Ray", plan.describe(nodes))]
    if SHARED_MEMORY.is_dir() and len(nodes) == 1:
        free, store = shutil.disk_usage(SHARED_MEMORY).free, nodes[0].get("object_store_memory", 0.0)
        says = f"{free / GIB:.1f} GiB free, the object store may take {store / GIB:.1f}"
        status = Status.OK if free >= store else Status.NOTE
        found.append(Finding(status, str(SHARED_MEMORY), says))
    return found
