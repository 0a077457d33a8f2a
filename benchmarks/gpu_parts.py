"""Parts of benchmarks/gpu.py without their own script: python benchmarks/gpu_parts.py PART --json FILE"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import BACKBONE, ROOT, Figures
from counting import memory_of
from torch import Tensor

from prometar.config.settings import Config
from prometar.data.streaming.stream import stream_local
from prometar.device import to_cpu
from prometar.training.epoch import sgd_config, train_epoch, train_step
from prometar.training.run import DTYPES, Run, build_run, clear_caches, initial_state
from prometar.training.session import Session

PRECISIONS = ("fp32", "bf16", "fp16")
WARM_UP, COUNTED = 3, 20  # steps before and during the measurement
HOST = torch.device("cpu")
MINI = {"backbone.name": "mini"}
RANDOM_CLIP = {"backbone.name": BACKBONE, "backbone.pretrained": "random"}
PROCESS_COUNTS = (1, 2, 4, 8)  # on one GPU
WAIT_SECONDS = 300  # until the other processes are ready


def run_of(precision: str, backbone: Mapping[str, str] = MINI, *, device: torch.device | None = None) -> Run:
    """Build a run on `textures`: two epochs, two images per class."""
    device = device or torch.device("cuda", 0)
    clear_caches()
    config = Config().override(
        {"train.epochs": 2, "data.shots": 2, "inner.lr": 0.1, "backbone.precision": precision, **backbone}
    )
    with patch("prometar.training.run.default_device", lambda: device):
        return build_run(config, "all_classes")


def prompts_after(run: Run) -> dict[str, Tensor]:
    """Train one epoch. Return the prompts."""
    batches = stream_local(run.plan, run.dataset.source)
    state, _ = train_epoch(run, initial_state(run), batches)
    return to_cpu(state.leaves)


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest absolute difference between two sets of tensors."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def parity() -> Figures:
    """Return the difference of the prompts from float64 on the CPU after an epoch, by precision."""
    on_cpu = prompts_after(run_of("fp64", device=HOST))
    return {p: distance(prompts_after(run_of(p)), on_cpu) for p in ("fp64", *PRECISIONS)}


def prompts_by_sessions(sessions: int) -> dict[str, Tensor]:
    """Train two epochs, in one session or in two, of which the second resumes. Return the prompts."""
    run, folder = run_of("fp32"), Path(tempfile.mkdtemp())
    for _ in range(sessions):
        session = Session(run, folder)
        for _ in range(2 // sessions):
            session.run_epoch()
        session.close()
    return to_cpu(session.state.leaves)


def repeat() -> Figures:
    """Return whether two runs are equal bit for bit, and whether a resumed run equals them."""
    first, again, resumed = (prompts_by_sessions(sessions) for sessions in (1, 1, 2))
    return {"again": distance(first, again) == 0, "resumed": distance(first, resumed) == 0}


def speed() -> Figures:
    """Return steps per second of ViT-B/16 with random weights and 24 classes, by precision."""
    found: Figures = {}
    for precision in PRECISIONS:
        run = run_of(precision, RANDOM_CLIP)
        torch.cuda.reset_peak_memory_stats()
        found[precision] = steps_per_second(run)
        found[f"{precision} peak bytes"] = torch.cuda.max_memory_allocated()
    return found


def steps_per_second(run: Run, ready: Callable[[], object] = lambda: None) -> float:
    """Repeat one step on one batch. Return steps per second. `ready` is called after the warm-up."""
    batch = next(iter(stream_local(run.plan, run.dataset.source)))
    start, now = initial_state(run), sgd_config(run.config, 1)

    def seconds(number: int) -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(number):
            train_step(run, start, batch, now)
        torch.cuda.synchronize()
        return time.perf_counter() - began

    seconds(WARM_UP)
    ready()
    return COUNTED / seconds(COUNTED)


def memory() -> Figures:
    """Return peak bytes of a step by precision: allocated, and counted with fake tensors."""
    found: Figures = {}
    for precision in PRECISIONS:
        run = run_of(precision, RANDOM_CLIP)
        classes = len(run.dataset.classnames)
        batch, start = next(iter(stream_local(run.plan, run.dataset.source))), initial_state(run)
        torch.cuda.reset_peak_memory_stats()
        train_step(run, start, batch, sgd_config(run.config, 1))
        counted = memory_of(run.config, num_classes=classes, dtype=DTYPES[precision])
        found[precision] = [torch.cuda.max_memory_allocated(), counted.peak]
    return found


def packing() -> Figures:
    """Return the total steps per second of several processes on one GPU in bf16."""
    found: Figures = {}
    for count in PROCESS_COUNTS:
        steps = total_steps_per_second(count)
        if steps is None:
            break  # so many processes do not fit into GPU memory
        found[str(count)] = steps
    return found


def total_steps_per_second(count: int) -> float | None:
    """Return the total steps per second of `count` processes, or None if a process failed."""
    context = multiprocessing.get_context("spawn")
    barrier, seconds = context.Barrier(count), context.Queue()
    workers = [context.Process(target=_steps, args=(barrier, seconds)) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        return None
    return count * COUNTED / max(seconds.get() for _ in workers)


def _steps(barrier: Any, seconds: Any) -> None:
    try:
        run = run_of("bf16", RANDOM_CLIP)
        seconds.put(COUNTED / steps_per_second(run, ready=lambda: barrier.wait(WAIT_SECONDS)))
    except BaseException:
        barrier.abort()  # otherwise the other processes would wait for this one
        raise


def study() -> Figures:
    """Run a study of `cells` on the command line. Return its exit status and duration in seconds."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "tune" / "search.py"), "--trials", "8", "--out", tempfile.mkdtemp()]
    status = subprocess.run(command, cwd=ROOT).returncode
    return {"status": status, "seconds": time.perf_counter() - began}


MEASURES: dict[str, Callable[[], Figures]] = {
    "parity": parity, "repeat": repeat, "speed": speed, "memory": memory, "packing": packing,
    "study": study,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=list(MEASURES), help="measurement to run")
    parser.add_argument("--json", type=Path, required=True, help="file of the measurements")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    args.json.write_text(json.dumps(MEASURES[args.part]()), "utf-8")


if __name__ == "__main__":
    main()
