"""Time and memory of one training step, compared with a plain transcription of the published code.

    python benchmarks/step.py [--classes 24 100] [--dtypes fp32 bf16] [--repeats 2] [--threads 2]
        [--limit-gb 24] [--quick] [--json FILE]
    python benchmarks/step.py --methods tcp mma ... [--classes 24] [--dtypes fp32 bf16] [--repeats 6]
        [--threads 2] [--records FILE] [--doc FILE] [--quick]

The first form measures time, memory and operations of ProMetaR with ViT-B/16, random weights and batch size
4. Both sides use the same images and prompts. The published code runs in fp32. Sides alternate in separate
processes, and the first step of each process is not measured. Peak memory is that of the whole process. On a
GPU, it is the memory that torch allocated. Operations are those of the executed matrix products. Their rate
is compared with the rate of 2048 x 2048 products in the same process. `tests/parity` checks that both sides
compute the same.

The second form measures newer methods (step_methods.py). Each method and precision is a record in --records,
and a repeated command only measures what is missing. The table also replaces the block `step-methods` of
--doc.
"""

import argparse
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
import torch.nn.functional as F
from common import (
    BACKBONE,
    ROOT,
    Figures,
    arguments,
    describe,
    in_turn,
    median_of,
    print_figures,
    table,
    write_json,
)
from step_methods import METHODS, compare, timed
from torch.utils.flop_counter import FlopCounterMode

from prometar.clip.model import Clip, Tower
from prometar.clip.openclip import load_backbone, load_clip, tokenize
from prometar.config.settings import Config
from prometar.device import send
from prometar.methods.composition import build
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch, leave_one_class_out
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
COUNTED = 2
"""Number of timed steps per process."""


def make_step(side: str, num_classes: int, backbone: str, dtype: str) -> Callable[[], object]:
    """Return a function that runs one step of a side. Every call has the same state and batch.

    Args:
        side: "released" for the published code, "ours" for this project.
        num_classes: Number of classes.
        backbone: Name of the backbone, whose weights are random.
        dtype: Key of `DTYPES`.
    """
    clip = load_backbone(backbone, "random", dtype=DTYPES[dtype], device=DEVICE).clip
    method = build(Config())
    names = [f"class number {i}" for i in range(num_classes)]
    tokens = tokenize(prompt_texts(names, method.prompts, init="a photo of a", template="{}"))
    generator = torch.Generator().manual_seed(0)
    teacher = F.normalize(torch.randn(num_classes, clip.embed_dim, generator=generator), dim=-1).to(DEVICE)
    prompts = method.prompts.initialize(clip, tokenize(["a photo of a"])[0, 1:5], generator)
    state = State.start(prompts, method.modulator.initialize(prompts, generator))
    images = torch.randn(4, 3, clip.image_size, clip.image_size, generator=generator).to(DEVICE, clip.dtype)
    labels = torch.tensor([0, 1, 2, 2])
    rng = np.random.default_rng(0)
    task = leave_one_class_out(labels, method.augmentation, rng, dtype=clip.working_dtype)
    if side == "released":
        sys.path.insert(0, str(ROOT))
        from tests.parity.released import Released

        plain = plain_clip(backbone).to(device=DEVICE)
        reference = Released(
            plain,
            tokens,
            teacher,
            state.leaves,
            state.gate,
            text_weight=50,
            image_weight=20,
            reduction=8,
            inner_lr=5e-4,
            outer_weight=5e-4,
            prompt_lr=0.0025,
            gate_lr=1e-6,
        )
        return lambda: reference.step(images, labels, task)
    model = build_model(clip, method, tokens, teacher)

    def run() -> object:
        batch = embed_batch(clip, method, images, labels, send(task, images.device))
        return step(model, method, state, *batch, Rates(0.0025, 1e-6))

    return run


def plain_clip(backbone: str) -> Clip:
    """Return the backbone with QuickGELU, as the published code requires. Its weights are random anyway."""
    clip = load_clip(backbone, "random")
    assert isinstance(clip.text, Tower)
    text = replace(clip.text, activation="quick_gelu")
    vision = replace(clip.vision, activation="quick_gelu")
    return replace(clip, text=text, vision=vision)


def product_rate(dtype: str, size: int) -> float:
    """Return the operations per second of a large matrix product."""
    a = torch.randn(size, size).to(DEVICE, DTYPES[dtype])
    seconds = [timed(lambda: a @ a) for _ in range(12)]
    operations = 2 * size**3  # size multiplications and additions for each of size^2 results
    return operations / median(seconds[2:])  # the first two products warm up


def reset_peak() -> None:
    """Reset the peak of allocated GPU memory. On a CPU, the peak of the process cannot be reset."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    """Return the peak of memory in GB: allocated GPU memory, or the memory of the process on a CPU."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak_kib * 1024 / 1e9


def measure(
    side: str, classes: int, backbone: str, dtype: str, threads: int, limit_gb: float, matrix_size: int
) -> Figures:
    """Measure one side. A side that exceeds the memory limit returns {"fits": False}.

    Returns:
        `seconds` of each step, `flops` (operations of a step), `share` (rate of these operations divided by
        the rate of large matrix products), `rates` (operations of large matrix products per second) and
        `peak_gb`.
    """
    torch.set_num_threads(threads)
    if DEVICE == "cpu":
        limit = int(limit_gb * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        run = make_step(side, classes, backbone, dtype)
        run()
        rates = [product_rate(dtype, matrix_size)]
        seconds = []
        for _ in range(COUNTED):
            seconds.append(timed(run))
            rates.append(product_rate(dtype, matrix_size))
        peak = peak_gb()
        with FlopCounterMode(display=False) as counter:
            run()
    except (MemoryError, RuntimeError) as error:
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        return {"fits": False}
    flops = counter.get_total_flops()
    return {
        "fits": True,
        "seconds": seconds,
        "flops": flops,
        "share": flops / median(seconds) / median(rates),
        "rates": rates,
        "peak_gb": peak,
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--methods", nargs="+", choices=METHODS, help="newer methods to measure")
        parser.add_argument("--classes", type=int, nargs="+", help="numbers of classes (24 and 100, or 24)")
        parser.add_argument("--dtypes", nargs="+", choices=DTYPES, help="precisions (fp32, or fp32 and bf16)")
        parser.add_argument("--backbone", default=BACKBONE, help="CLIP backbone")
        parser.add_argument("--limit-gb", type=float, default=24.0, help="memory limit per process")
        records = Path("out/step-methods.jsonl")
        parser.add_argument("--records", type=Path, default=records, help="file of measured methods")
        parser.add_argument("--doc", type=Path, help="document whose block `step-methods` is replaced")

    args = arguments(__doc__, add, repeats=None)
    if args.side:
        return print_figures(measure(**args.side))
    if args.quick:
        args.backbone = "mini"
        args.repeats = 1
        args.classes = [4]
    if args.methods:
        args.repeats = args.repeats or 6
        dtypes = args.dtypes or ["fp32", "bf16"]
        for classes in args.classes or [24]:
            compare(args.methods, dtypes, args, classes=classes, backbone=args.backbone)
        return None
    args.repeats = args.repeats or 2
    return compare_prometar(args, args.dtypes or ["fp32"], args.classes or [24, 100])


def compare_prometar(args: argparse.Namespace, dtypes: list[str], numbers_of_classes: list[int]) -> None:
    """Compare steps of ProMetaR. Print a table and write --json."""
    common = {
        "backbone": args.backbone,
        "threads": args.threads,
        "limit_gb": args.limit_gb,
        "matrix_size": 256 if args.quick else 2048,
    }
    rows = []
    everything = []
    for classes in numbers_of_classes:
        sides = [{"side": "released", "dtype": "fp32", "classes": classes, **common}]
        for dtype in dtypes:
            sides.append({"side": "ours", "dtype": dtype, "classes": classes, **common})
        rounds = in_turn(sides, args, killed={"fits": False})
        everything += rounds
        released, *ours = rounds
        for dtype, figures in zip(dtypes, ours, strict=True):
            rows.append(row(classes, released, figures, dtype))
    print(f"{args.backbone}, batch 4, {describe(args.threads, 'the published code in fp32')}")
    print(table(HEAD, rows))
    return write_json(args, everything)


HEAD = (
    "classes",
    "dtype",
    "released s",
    "ours s",
    "ratio",
    "released GB",
    "ours GB",
    "ratio",
    "ours TFLOP",
    "share of matmul rate",
)


def row(classes: int, released: list[Figures], ours: list[Figures], dtype: str) -> tuple[object, ...]:
    """Return a row of the table. A side that exceeds the memory limit has no figures."""
    if not ours[0]["fits"]:
        return (classes, dtype, *["does not fit"] * 8)
    seconds = median_of(ours, "seconds")
    peak = median_of(ours, "peak_gb")
    tflop = median_of(ours, "flops") / 1e12
    share = median_of(ours, "share")
    if not released[0]["fits"]:
        return (classes, dtype, "does not fit", seconds, "-", "does not fit", peak, "-", tflop, share)
    their_seconds = median_of(released, "seconds")
    their_peak = median_of(released, "peak_gb")
    speedup = their_seconds / seconds
    return (
        classes,
        dtype,
        their_seconds,
        seconds,
        speedup,
        their_peak,
        peak,
        their_peak / peak,
        tflop,
        share,
    )


if __name__ == "__main__":
    main()
