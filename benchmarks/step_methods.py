"""Steps of TCP, MMA, MMRL, DePT and CoPrompt: plain transcriptions of the official code against our steps.

`benchmarks/step.py --methods` measures them. For each method and precision, two processes take turns, one
step each, so that gradual changes of the machine's speed affect both sides equally. The first step of each
process is not timed. Its operations are counted. No side knows the images or their features beforehand.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, Figures, describe, machine, publish, table
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from prometar.clip.openclip import load_backbone, load_clip, tokenize
from prometar.config.settings import Config, configure
from prometar.device import default_device
from prometar.io.files import write_atomically
from prometar.methods.composition import build
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.step.state import State
from prometar.training.backbone import DTYPES
from prometar.training.epoch import rates_of

METHODS = ("tcp", "mma", "mmrl", "dept-coop", "dept-kgcoop", "dept-maple", "coprompt")
SIDES = ("plain", "ours")
TEMPLATE = "a photo of a {}."
NUM_TEXTS = 3
"""Number of frozen texts per class, if the method draws one of several in each step."""
PAUSE_SECONDS = 0.3
"""Pause before each step. The threads of the other side's step wait actively for a while."""
WAIT_SECONDS = 600
"""Longest time that a process may take to answer."""


@dataclass(frozen=True)
class Cell:
    """What is measured together: a row of the table."""

    method: str
    dtype: str
    classes: int
    backbone: str
    threads: int
    repeats: int

    def key(self) -> dict[str, Any]:
        """Return what identifies the figures of this cell in a file of records."""
        installed = machine()
        return {**vars(self), "cpu": installed["cpu"], "torch": installed["torch"]}


@dataclass(frozen=True)
class Inputs:
    """What both sides compute with.

    Args:
        config: Settings of the method.
        ids_CT: Tokens of the prompted text of each class.
        init_ids: Tokens of the words from which prompts start.
        images: Random images.
        second_view: A second random view of each image, or None if the method needs only one.
        labels: Class of each image.
        teacher: Normalized frozen text features (C, E). If the method draws one text per class in each step:
            (`NUM_TEXTS`, C, E). None if the method does not use them.
    """

    config: Config
    ids_CT: Tensor
    init_ids: Tensor
    images: Tensor
    second_view: Tensor | None
    labels: Tensor
    teacher: Tensor | None


def inputs_of(cell: Cell, *, embed_dim: int, image_size: int) -> Inputs:
    """Return the inputs of a cell, which are the same in each process.

    Args:
        cell: What is measured.
        embed_dim: Width of the features.
        image_size: Height and width of images in pixels.
    """
    config = configure(cell.method, {"backbone.name": cell.backbone})
    method = build(config)
    names = [f"class number {number}" for number in range(cell.classes)]
    ids = tokenize(prompt_texts(names, method.prompts, init=config.prompts.init, template=TEMPLATE))
    tokens = tokenize([config.prompts.init])[0]
    # Between the start token and the end token, which has the highest number.
    init_ids = tokens[1 : int(tokens.argmax())]
    generator = torch.Generator().manual_seed(0)
    batch_size = config.train.batch_size
    shape = (batch_size, 3, image_size, image_size)
    images = torch.randn(shape, generator=generator)
    second_view = torch.randn(shape, generator=generator) if config.augment.views > 1 else None
    labels = torch.randint(cell.classes, (batch_size,), generator=generator)
    teacher: Tensor | None = None
    if method.uses_frozen_text_features:
        features_shape: tuple[int, ...] = (cell.classes, embed_dim)
        if method.regularizer.draw:
            features_shape = (NUM_TEXTS, *features_shape)
        teacher = F.normalize(torch.randn(features_shape, generator=generator), dim=-1)
    return Inputs(config, ids, init_ids, images, second_view, labels, teacher)


def make_step(side: str, cell: Cell) -> Callable[[], object]:
    """Return a function that trains one step of a side on the same batch."""
    device = default_device()
    dtype = DTYPES[cell.dtype]
    pretrained = None if cell.backbone == "mini" else "random"
    if side == "plain":
        # The official code requires QuickGELU. The weights are random anyway.
        clip = load_clip(cell.backbone, pretrained).to(device=device, dtype=dtype)
    else:
        method = build(configure(cell.method, {"backbone.name": cell.backbone}))
        backbone = load_backbone(
            cell.backbone, pretrained, dtype=dtype, device=device, folded=not method.changes_blocks
        )
        clip = backbone.clip
    given = inputs_of(cell, embed_dim=clip.embed_dim, image_size=clip.image_size)
    config = given.config
    method = build(config)
    generator = torch.Generator().manual_seed(0)
    leaves = method.initialize(clip, given.init_ids, cell.classes, generator)
    images = given.images.to(device, dtype)
    second_view = None if given.second_view is None else given.second_view.to(device, dtype)
    labels = given.labels.to(device)
    teacher = None if given.teacher is None else given.teacher.to(device)
    if side == "plain":
        sys.path.insert(0, str(ROOT))
        from tests.support.transcriptions import TRANSCRIPTIONS

        plain = TRANSCRIPTIONS[cell.method](clip, config, given.ids_CT.to(device), leaves, teacher)
        return lambda: plain.step(images, labels, second_view=second_view)

    model = build_model(clip, method, given.ids_CT, teacher)
    if teacher is not None and method.regularizer.draw:
        model = replace(model, frozen_text_CE=teacher[0])
    state = State.start(leaves, {}, method.optimizer)
    rates = rates_of(config, config.optim.warmup_epochs)

    def run() -> object:
        nonlocal state
        batch, _ = embed_batch(clip, method, images, labels, None, second_view_B3HW=second_view)
        state, losses = step(model, method, state, batch, None, rates)
        return losses

    return run


# Functions that count the operations of a kernel get the shapes of its tensors.


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any
) -> int:
    """Return the operations of softmax(q @ k.T) @ v."""
    rows, heads, num_queries, width = query
    return 2 * rows * heads * num_queries * key[-2] * (width + value[-1])


def _attention_backward_flops(
    gradient: Sequence[int],
    query: Sequence[int],
    key: Sequence[int],
    value: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """Return the operations of the backward pass, which computes five products instead of two."""
    return _attention_flops(query, key, value) * 5 // 2


_aten: Any = torch.ops.aten
FUSED_ATTENTION = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Operations that torch's counter does not know."""


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a step takes, until its last kernel has ended."""
    started = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def reset_peak() -> None:
    """Forget the peak of memory so far, such as that of loading weights. On CPUs, only Linux supports it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc keeps memory that loading the weights has freed
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_gb() -> float:
    """Return the peak memory since `reset_peak`, of the whole process or on a GPU of torch's tensors."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024 / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def serve(pipe: Connection, side: str, cell: Cell) -> None:
    """Run a side in its own process.

    First, send the number of floating-point operations of a step. Then train a step for each True that is
    received, and send its seconds. At the first False, send the peak memory in GB, and end.
    """
    torch.set_num_threads(cell.threads)
    run = make_step(side, cell)
    reset_peak()
    with FlopCounterMode(display=False, custom_mapping=FUSED_ATTENTION) as counter:
        run()
    pipe.send(counter.get_total_flops())
    while pipe.recv():
        pipe.send(timed(run))
    pipe.send(peak_gb())


@contextmanager
def process_of(side: str, cell: Cell) -> Iterator[Connection]:
    """Start the process of a side, and end it with the context."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, side, cell), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def answer(pipe: Connection) -> Any:
    """Return the next object that a process sends. Exit if it takes longer than `WAIT_SECONDS`."""
    if not pipe.poll(WAIT_SECONDS):
        raise SystemExit(f"error: a process did not answer within {WAIT_SECONDS} s")
    return pipe.recv()


def measure(cell: Cell) -> Figures:
    """Return operations, seconds of each step and peak memory of both sides."""
    found: Figures = {side: {"seconds": []} for side in SIDES}
    with process_of("plain", cell) as plain, process_of("ours", cell) as ours:
        pipes = {"plain": plain, "ours": ours}
        for side, pipe in pipes.items():
            found[side]["flops"] = answer(pipe)
        for turn in range(cell.repeats):
            order = SIDES if turn % 2 == 0 else SIDES[::-1]  # no side is always the first of a pair
            for side in order:
                time.sleep(PAUSE_SECONDS)
                pipes[side].send(True)
                found[side]["seconds"].append(answer(pipes[side]))
        for side, pipe in pipes.items():
            pipe.send(False)
            found[side]["peak_gb"] = answer(pipe)
    return found


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of earlier calls. Lines that are not JSON are ignored."""
    records = []
    if path.is_file():
        for line in path.read_text("utf-8").splitlines():
            with suppress(ValueError):
                records.append(json.loads(line))
    return records


def recorded(path: Path, cell: Cell) -> Figures | None:
    """Return the figures of a cell that an earlier call measured with the same versions, or None."""
    key = cell.key()
    for record in read_records(path):
        if record["cell"] == key:
            figures: Figures = record["figures"]
            return figures
    return None


def measured(path: Path, cell: Cell) -> Figures:
    """Return the figures of a cell. Measure them, and add them to the file, if they are missing."""
    figures = recorded(path, cell)
    if figures is None:
        figures = measure(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        records = [*read_records(path), {"cell": cell.key(), "figures": figures}]
        text = "".join(json.dumps(record) + "\n" for record in records)
        write_atomically(path, text.encode())
    return figures


HEAD = (
    "method",
    "batch",
    "dtype",
    "plain s",
    "ours s",
    "ratio",
    "interval",
    "plain GB",
    "ours GB",
    "plain TFLOP",
    "ours TFLOP",
)


def row(cell: Cell, figures: Figures) -> tuple[Any, ...]:
    """Return a row of the table.

    A ratio compares the two steps of a turn. The row contains the median of all ratios, and their range.
    """
    plain = figures["plain"]
    ours = figures["ours"]
    ratios = [
        plain_seconds / our_seconds
        for plain_seconds, our_seconds in zip(plain["seconds"], ours["seconds"], strict=True)
    ]
    return (
        cell.method,
        configure(cell.method, {}).train.batch_size,
        cell.dtype,
        median(plain["seconds"]),
        median(ours["seconds"]),
        median(ratios),
        f"[{min(ratios):.2f}, {max(ratios):.2f}]",
        plain["peak_gb"],
        ours["peak_gb"],
        plain["flops"] / 1e12,
        ours["flops"] / 1e12,
    )


def compare(
    methods: Sequence[str], dtypes: Sequence[str], args: argparse.Namespace, *, classes: int, backbone: str
) -> None:
    """Measure what is missing, print the table and write it to --doc."""
    cells = [
        Cell(method, dtype, classes, backbone, args.threads, args.repeats)
        for method in methods
        for dtype in dtypes
    ]
    threads = str(args.threads)
    os.environ |= {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    rows = []
    for cell in cells:
        rows.append(row(cell, measured(args.records, cell)))
        print(table(HEAD, rows[-1:]).splitlines()[-1], flush=True)
    text = f"{backbone}, {classes} classes. {describe(args.threads, ' and '.join(dtypes))}.\n\n"
    publish(text + table(HEAD, rows), args.doc, "step-methods")
