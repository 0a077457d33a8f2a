"""Parts of benchmarks/gpu.py: python benchmarks/gpu_parts.py PART --json FILE [--rehearse]

ViT-B/16 has random weights, which do not affect times and memory. The dataset is the rendered `textures`
with its 32 classes, in batches of four. `--rehearse` replaces ViT-B/16 by mini and shortens the timings, to
check the script on a CPU. Its figures mean nothing. Only the part `study` needs Ray and Optuna.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import BACKBONE, ROOT, Figures
from gpu_parity import (
    BOUNDS,
    MINI,
    RANDOM_CLIP,
    Trajectory,
    deviations,
    emulated,
    run_of,
    train,
    violations,
)

from prometar.config.recipes import METHODS
from prometar.data.streaming.stream import stream_local
from prometar.device import CONTEXT_BYTES, default_device, limit_gpu_memory, release_cached_memory
from prometar.errors import first_line, is_out_of_memory
from prometar.training.backbone import DTYPES
from prometar.training.epoch import rates_of, train_step
from prometar.training.run import Run, initial_state
from prometar.training.run_result import RESULT_FILE, read_result
from prometar.training.session import Session

PRECISIONS = ("fp32", "tf32", "bf16")
PROCESS_COUNTS = (1, 2, 4, 8)
"""Numbers of processes that share a GPU in the part `packing`."""
WARM_UP_STEPS = 3
"""Steps before a timing, during which libraries choose kernels and allocate memory."""
REPEATS = 5
"""Number of timings of each measurement."""
ALL_CLASSES = "all_classes"
"""Objective of timed runs. They train on all 32 classes."""
SENSORS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw", "utilization.gpu")
"""Fields of nvidia-smi. `utilization.gpu` is the share of time in which a kernel ran, in percent."""
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setup:
    """How parts are measured.

    Args:
        backbone: Settings of the backbone of all parts but `parity` and `methods`, which have mini.
        seconds: Seconds of each repeat of a timing. `REPEATS` of them take ten seconds.
        rehearse: True to check the script on a CPU.
    """

    backbone: Mapping[str, Any] = field(default_factory=lambda: RANDOM_CLIP)
    seconds: float = 2.0
    rehearse: bool = False

    @property
    def precisions(self) -> Sequence[str]:
        """Measured precisions. A rehearsal has one, because each takes as long as another."""
        return PRECISIONS[-1:] if self.rehearse else PRECISIONS


REHEARSAL = Setup(backbone=MINI, seconds=0.0, rehearse=True)


def synchronize() -> None:
    """Wait until the GPU has finished."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Parity and repetition


def parity(setup: Setup) -> Figures:
    """Return deviations of mini from float64 on the CPU, by precision, and what exceeds its bound."""
    reference = train(run_of("fp64", device=CPU))
    return {precision: _compared(precision, reference, MINI) for precision in ("fp64", *PRECISIONS)}


def parity_vit(setup: Setup) -> Figures:
    """Return deviations of ViT-B/16 from float64 on the same device, by precision.

    `parity` compares float64 on the GPU with the CPU, which would need minutes for ViT-B/16.
    """
    reference = train(run_of("fp64", setup.backbone))
    return {precision: _compared(precision, reference, setup.backbone) for precision in PRECISIONS}


def _compared(precision: str, reference: Trajectory, backbone: Mapping[str, Any], **options: Any) -> Figures:
    """Train in a precision. Return the deviations from the reference, and those that exceed their bound."""
    with emulated(precision):
        trained = train(run_of(precision, backbone, **options))
    found = deviations(trained, reference)
    return {"deviations": found, "violations": violations(found, BOUNDS[precision])}


def methods(setup: Setup) -> Figures:
    """Return deviations of each learning method with mini in fp32 from float64 on the CPU."""
    found: Figures = {}
    for method in METHODS[-1:] if setup.rehearse else METHODS:
        run = run_of("fp64", device=CPU, method=method)
        if initial_state(run).leaves:  # methods without learned tensors have nothing to compare
            found[method] = _compared("fp32", train(run), MINI, method=method)
    return found


def repeat(setup: Setup) -> Figures:
    """Return whether runs in two fresh processes, and a resumed run, are equal bit for bit."""
    folder = Path(tempfile.mkdtemp())
    first = _train_in_fresh_process(folder / "first", setup)
    again = _train_in_fresh_process(folder / "again", setup)
    resumed = train(run_of("fp32", setup.backbone), sessions=2)
    return {"again": first.equals(again), "resumed": first.equals(resumed)}


def _train_in_fresh_process(folder: Path, setup: Setup) -> Trajectory:
    """Train the trajectory of the part `repeat` in a new process, which writes it to the folder."""
    script = str(Path(__file__).resolve())
    command = [sys.executable, script, "trajectory", "--json", str(folder)]
    if setup.rehearse:
        command.append("--rehearse")
    subprocess.run(command, check=True)
    return Trajectory.load(folder)


# Speed


def steps_within(run: Run, seconds: float) -> tuple[int, float]:
    """Repeat training steps for some seconds, at least one. Return their number and the elapsed seconds.

    Image features are not cached, so that each step encodes its images, as in a run's own epochs.
    """
    run = replace(run, cache=None)
    batch = next(iter(stream_local(run.order, run.dataset.source)))
    state = initial_state(run)
    rates = rates_of(run.config, 1)
    synchronize()
    began = time.perf_counter()
    number = 0
    while number == 0 or time.perf_counter() - began < seconds:
        # The queue of the GPU is shorter than a step's kernels, so the host cannot run ahead.
        state, _ = train_step(run, state, batch._replace(step=state.step), rates)
        number += 1
    synchronize()
    return number, time.perf_counter() - began


def warm_up(run: Run) -> None:
    """Train some steps that are not timed."""
    for _ in range(WARM_UP_STEPS):
        steps_within(run, 0.0)


def spread_of(rates: list[float]) -> Figures:
    """Return the median, the lowest and the highest of the rates."""
    return {"steps_per_second": median(rates), "lowest": min(rates), "highest": max(rates)}


@contextmanager
def sensors() -> Iterator[dict[str, list[float]]]:
    """Read clocks, temperature, power and utilization twice a second within the context.

    The result stays empty without nvidia-smi.
    """
    readings: dict[str, list[float]] = {}
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            try:
                values = _query_sensors()
            except (OSError, ValueError, subprocess.SubprocessError):
                return
            for name, value in zip(SENSORS, values, strict=True):
                readings.setdefault(name, []).append(value)
            ended.wait(0.5)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        yield readings
    finally:
        ended.set()
        thread.join()


def _query_sensors() -> list[float]:
    if not torch.cuda.is_available():
        raise OSError("no GPU")
    uuid = torch.cuda.get_device_properties(0).uuid
    command = [
        "nvidia-smi",
        f"--id=GPU-{uuid}",
        f"--query-gpu={','.join(SENSORS)}",
        "--format=csv,noheader,nounits",
    ]
    line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    return [float(value) for value in line.split(",")]


def summary_of(readings: Mapping[str, list[float]]) -> Figures:
    """Return the lowest, the median and the highest reading of each sensor, as a list."""
    return {name: [min(values), median(values), max(values)] for name, values in readings.items()}


def speed(setup: Setup) -> Figures:
    """Return steps per second, their spread, peak memory and sensors, by precision."""
    found: Figures = {}
    for precision in setup.precisions:
        run = run_of(precision, setup.backbone, objective=ALL_CLASSES)
        warm_up(run)
        with sensors() as readings:
            timings = [steps_within(run, setup.seconds) for _ in range(REPEATS)]
        figures = spread_of([number / elapsed for number, elapsed in timings])
        figures["seconds"] = sum(elapsed for _, elapsed in timings)
        figures["sensors"] = summary_of(readings)
        figures["classes"] = len(run.dataset.classnames)
        found[precision] = figures
    return found


# Memory


def memory(setup: Setup) -> Figures:
    """Return bytes of GPU memory: of a step in each precision, after a job, and of a whole process.

    The memory of a step is measured ("allocated"), and counted without a GPU ("counted", see counting.py).
    """
    from counting import memory_of

    found: Figures = {}
    for precision in setup.precisions:
        run = run_of(precision, setup.backbone, objective=ALL_CLASSES)
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        steps_within(run, 0.0)
        classes = len(run.dataset.classnames)
        counted = memory_of(run.config, num_classes=classes, dtype=DTYPES[precision])
        found[precision] = {"allocated": _cuda_bytes("max_memory_allocated"), "counted": counted.peak}
    found["after a job"] = _bytes_after_a_job(setup)
    found["process"] = _bytes_of_a_process(setup)
    return found


def _cuda_bytes(function: str) -> int:
    """Return the result of a function of torch.cuda, such as "memory_allocated", or 0 without a GPU."""
    return getattr(torch.cuda, function)() if torch.cuda.is_available() else 0


def _bytes_after_a_job(setup: Setup) -> Figures:
    """Return allocated and reserved bytes after a job has ended, with its backbone still loaded."""
    run = run_of("bf16", setup.backbone)
    before = _cuda_bytes("memory_allocated")
    with tempfile.TemporaryDirectory() as folder, closing(Session(run, Path(folder))) as session:
        session.run_epoch()
    del session
    gc.collect()
    release_cached_memory()
    more = _cuda_bytes("memory_allocated") - before
    return {"more allocated": more, "reserved": _cuda_bytes("memory_reserved")}


def _bytes_of_a_process(setup: Setup) -> Figures:
    """Return how much GPU memory another process takes after some steps, including its CUDA context."""
    gc.collect()
    release_cached_memory()
    free = _free_bytes()
    with closing(Worker("bf16", setup)) as worker:
        worker.wait_until_ready()
        return {"bf16, after warm-up": free - _free_bytes()}


def _free_bytes() -> int:
    """Return the free memory of the whole GPU in bytes, or 0 without a GPU."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 0


def out_of_memory(setup: Setup) -> Figures:
    """Return how a step that runs out of memory is repeated with larger shares of the GPU.

    The first share has room for the weights, but not for a step. A CPU has no shares, so the first try
    succeeds there.
    """
    run = run_of("fp32", setup.backbone, objective=ALL_CLASSES)
    release_cached_memory()
    weights = _cuda_bytes("memory_reserved")
    too_little = weights + CONTEXT_BYTES + 32 * 2**20
    total = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else too_little
    return retried(lambda: steps_within(run, 0.0), limit_gpu_memory, too_little / total)


def retried(step: Callable[[], object], limit: Callable[[float], None], share: float) -> Figures:
    """Call `step` with a share of the GPU. If memory is exhausted, double the share, as studies do.

    Args:
        step: What needs memory.
        limit: Function that limits memory to a share of the GPU.
        share: First share, from 0 to 1.

    Returns:
        `shares` that were tried, whether the step `succeeded`, and whether each error was `recognized` as a
        lack of memory. If no share was too small, nothing was recognized.
    """
    shares: list[float] = []
    recognized = True
    while True:
        shares.append(min(share, 1.0))
        limit(shares[-1])
        try:
            step()
        except (RuntimeError, MemoryError) as error:
            recognized = recognized and is_out_of_memory(error)
        else:
            return {"shares": shares, "succeeded": True, "recognized": recognized and len(shares) > 1}
        if not recognized or share >= 1:  # an error that studies would not repeat, or no larger share
            return {"shares": shares, "succeeded": False, "recognized": recognized}
        gc.collect()
        release_cached_memory()
        share *= 2


# Packing


class OutOfMemory(Exception):
    """A process did not fit into GPU memory."""


class Worker:
    """Process that trains on the shared GPU on request."""

    def __init__(self, precision: str, setup: Setup) -> None:
        context = get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, precision, setup), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until the run is built and warmed up."""
        self._answer()

    def start(self, seconds: float) -> None:
        """Start training for some seconds."""
        self._pipe.send(seconds)

    def rate(self) -> float:
        """Return the steps per second since `start`."""
        number, elapsed = self._answer()
        return number / elapsed

    def _answer(self) -> Any:
        """Return an answer. A process that crashed is a RuntimeError, never "does not fit".

        The time limit of the part ends a process that hangs.
        """
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"a process crashed with status {self._process.exitcode}") from None
        if kind == "out of memory":
            raise OutOfMemory(value)
        if kind == "error":
            raise RuntimeError(f"a process failed: {value}")
        return value

    def close(self) -> None:
        """End the process, and wait until its memory is free."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _serve(pipe: Connection, precision: str, setup: Setup) -> None:
    """Train in the process of a `Worker`. Each answer is a pair of its kind and its value."""
    try:
        run = run_of(precision, setup.backbone, objective=ALL_CLASSES)
        warm_up(run)
        pipe.send(("ready", None))
        while True:
            seconds = pipe.recv()
            pipe.send(("steps", steps_within(run, seconds)))
    except EOFError:
        pass  # the other side has ended
    except Exception as error:
        kind = "out of memory" if is_out_of_memory(error) else "error"
        pipe.send((kind, f"{type(error).__name__}: {first_line(error)}"))


def packing(setup: Setup) -> Figures:
    """Return the total steps per second of 1, 2, 4 and 8 processes on one GPU, by precision.

    Each entry has the spread of five repeats and the sensors, including the share of time that the GPU is
    busy. A number of processes that does not fit has "does not fit" and the message.
    """
    counts = PROCESS_COUNTS[:2] if setup.rehearse else PROCESS_COUNTS
    return {precision: _packed(precision, counts, setup) for precision in setup.precisions}


def _packed(precision: str, counts: tuple[int, ...], setup: Setup) -> Figures:
    """Return the figures of `packing` in one precision. After a number that does not fit, none is larger."""
    found: Figures = {}
    workers: list[Worker] = []
    try:
        # A start takes seconds, so all processes start together. Those that wait for work do not compute.
        memory_error = _add_workers(workers, max(counts), precision, setup)
        for count in counts:
            if len(workers) < count:  # some of them may fit now that those without memory have ended
                memory_error = _add_workers(workers, count, precision, setup)
            if len(workers) < count:
                found[str(count)] = {"does not fit": memory_error}
                break
            found[str(count)] = _total_rate(workers[:count], setup)
    except OutOfMemory as error:
        found[str(count)] = {"does not fit": str(error)}
    finally:
        for worker in workers:
            worker.close()
    return found


def _add_workers(workers: list[Worker], count: int, precision: str, setup: Setup) -> str:
    """Start processes until there are `count`. End those that do not fit into GPU memory.

    Returns:
        The error message of a process that does not fit, or "" if all fit.
    """
    memory_error = ""
    started = [Worker(precision, setup) for _ in range(count - len(workers))]
    workers += started
    for worker in started:
        try:
            worker.wait_until_ready()
        except OutOfMemory as error:
            memory_error = str(error)
            workers.remove(worker)
            worker.close()
    return memory_error


def _total_rate(workers: list[Worker], setup: Setup) -> Figures:
    """Return the total steps per second of workers that train at the same time."""
    rates = []
    with sensors() as readings:
        for _ in range(REPEATS):
            for worker in workers:
                worker.start(setup.seconds)
            rates.append(sum(worker.rate() for worker in workers))
    return {**spread_of(rates), "sensors": summary_of(readings)}


# With Ray


def study(setup: Setup) -> Figures:
    """Run a study whose trials share the GPU, on the command line.

    Returns:
        `status` (exit status), `gpu_shares` (each share of a GPU that a run had) and `seconds`.
    """
    began = time.perf_counter()
    folder = Path(tempfile.mkdtemp())
    command = [
        sys.executable,
        str(ROOT / "tune" / "search.py"),
        "--dataset",
        "textures",
        "--trials",
        "8",
        "--epochs",
        "1",
        "--max-concurrent",
        "4",
        "--top",
        "0",
        "--final-seeds",
        "1 2",
        "--set",
        "data.shots=1",
        "--out",
        str(folder),
    ]
    if not setup.rehearse:  # mini is the default backbone of rendered datasets
        command += ["--backbone", BACKBONE, "--pretrained", "random"]
    status = subprocess.run(command, cwd=ROOT).returncode
    shares = {read_result(path.parent).gpus or 0.0 for path in folder.rglob(RESULT_FILE)}
    return {"status": status, "gpu_shares": sorted(shares), "seconds": time.perf_counter() - began}


MEASURES: dict[str, Callable[[Setup], Figures]] = {
    "parity": parity,
    "parity-vit": parity_vit,
    "methods": methods,
    "repeat": repeat,
    "speed": speed,
    "memory": memory,
    "out-of-memory": out_of_memory,
    "packing": packing,
    "study": study,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*MEASURES, "trajectory"], help="measurement to run")
    parser.add_argument("--json", type=Path, required=True, help="file of the measurements")
    parser.add_argument("--rehearse", action="store_true", help="check the script with mini, without waiting")
    args = parser.parse_args()
    setup = REHEARSAL if args.rehearse else Setup()
    if args.part == "trajectory":
        train(run_of("fp32", setup.backbone)).save(args.json)
        return
    figures = {"device": str(default_device()), **MEASURES[args.part](setup)}
    args.json.write_text(json.dumps(figures), "utf-8")


if __name__ == "__main__":
    main()
