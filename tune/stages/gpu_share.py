"""How much of a GPU a trial needs: one epoch of the released settings on a whole one, and what it used."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from pydantic import BaseModel, ValidationError

from prometar.distributed.gpu_memory import least_memory
from prometar.distributed.placement import Node
from prometar.io.files import write_atomically
from tune.execution.course import Batch, Course
from tune.execution.jobs import ListedJobs
from tune.execution.reruns import Means
from tune.execution.runner import run_course
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job
from tune.results.writer import StudyFolder
from tune.study_spec import StudySpec
from tune.worker.trainable import TrialWorker

LEAST = 0.01  # of a GPU: hundreds of processes on one would wait for each other
_KIND = "accelerator_type:"  # begins what Ray calls a machine's kind of GPU
MARGIN = 0.92  # of a GPU's memory that is given out: what a trial needs differs a little from step to step


class ProbeWorker(TrialWorker):
    """Trains one epoch, and tells what its GPU holds by then: context, weights, and torch's largest pool."""

    def step(self) -> dict[str, Any]:
        result = super().step()
        return result | {"memory": None if result.get("failed") else memory(), "done": True}


def memory() -> list[int] | None:
    """Bytes in use and in all of this process's GPU; None where it has none."""
    if not torch.cuda.is_available():
        return None
    free, total = torch.cuda.mem_get_info()
    return [total - free, total]


def share_of_gpu(used: int, total: int) -> float:
    """1/n of a GPU, for as many trials as its memory holds.

    Example:
        >>> share_of_gpu(used=5 * 2**30, total=24 * 2**30)
        0.25
    """
    count = max(1, min(math.floor(1 / LEAST), math.floor(MARGIN * total / max(used, 1))))
    return math.floor(1e4 / count) / 1e4  # Ray counts in ten-thousandths


def kinds_of_gpu(nodes: Sequence[Node]) -> list[str]:
    """The kinds of GPU that machines have, as far as Ray knows them.

    Example:
        >>> kinds_of_gpu([{"GPU": 1.0, "accelerator_type:L4": 1.0}, {"CPU": 8.0}])
        ['L4']
    """
    names = {name for node in nodes for name in node if name.startswith(_KIND)}
    return sorted(name.removeprefix(_KIND) for name in names)


class _Probe(BaseModel):
    """What probe.json keeps: the kinds of GPU, a trial's share.

    least: Bytes of the smallest GPU, since those of one kind may differ; None: not known.
    """

    gpus: list[str]
    share: float
    least: int | None


def measured_share(folder: StudyFolder, spec: StudySpec, means: Means, gpus: Sequence[str]) -> float:
    """A trial's share of a GPU, measured once for GPUs of one kind and one least memory.

    A whole one where it cannot be measured.
    """
    if len(gpus) > 1:
        means.console.print(f"GPUs of several kinds, {' and '.join(gpus)}: each trial gets a whole one")
        return 1.0
    path, least = folder / "probe.json", least_memory()
    with suppress(OSError, ValidationError):  # measured anew
        kept = _Probe.model_validate_json(path.read_bytes())
        if kept.gpus == list(gpus) and least in (None, kept.least):
            return kept.share
    job = spec.search_job(spec.reference(), spec.seeds, str(folder / "probe" / "0000"), means.terms)
    JobFiles(job).drop_states()  # an epoch that lies there would be told, and nothing be trained
    worker = ProbeWorker if means.trainable is TrialWorker else means.trainable
    alone = replace(means, trainable=worker, plan=replace(means.plan, max_concurrent=1))
    memory = run_course(_probe(job, means), alone)
    if not memory:
        means.console.print("the memory of a trial could not be measured: each gets a whole GPU")
        return 1.0
    used, total = memory
    share = share_of_gpu(used, min(total, least or total))
    of_gpu = f"{total / 2**30:.1f} GiB of its GPU"
    if least is not None and least < 0.99 * total:
        of_gpu += f", and the smallest has {least / 2**30:.1f}"
    means.console.print(f"a trial uses {used / 2**30:.1f} of {of_gpu}: {share:g} of one each")
    write_atomically(path, _Probe(gpus=list(gpus), share=share, least=least).model_dump_json().encode())
    return share


def _probe(job: Job, means: Means) -> Course[list[int] | None]:
    jobs = ListedJobs([job], means.stopping, means.room)
    yield Batch(jobs)
    return jobs.last_result.get("memory")
