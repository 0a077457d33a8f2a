"""One ProMetaR step: a plain transcription of the published code against the optimized implementation.

    python benchmarks/step.py [--classes 24 100] [--dtypes fp32 bf16] [--repeats 2] [--threads 2]
        [--limit-gb 24] [--quick] [--json FILE]

Compares time, memory and arithmetic with ViT-B/16, random weights and batch size 4. Both sides use the same
images and prompts. The published code runs in fp32. Sides alternate in separate processes, and the first
step of each process is not measured. Peak memory is that of the whole process, or on a GPU the memory
that torch allocated. Operations are those of the executed matrix products. Their rate is compared with the
rate of 2048 x 2048 products in the same process. `tests/parity` checks that both sides compute the same.
"""

import argparse
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
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
COUNTED = 2  # timed steps per process


def make_step(side: str, num_classes: int, backbone: str, dtype: str) -> Callable[[], object]:
    """Return a function that runs one step of a side. Every call has the same state and batch."""
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
            plain, tokens, teacher, state.leaves, state.gate, 50, 20, 8, 5e-4, 5e-4, 0.0025, 1e-6
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
    text, vision = (replace(tower, activation="quick_gelu") for tower in (clip.text, clip.vision))
    return replace(clip, text=text, vision=vision)


def timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def product_rate(dtype: str, size: int) -> float:
    """Return the operations per second of a large matrix product."""
    a = torch.randn(size, size).to(DEVICE, DTYPES[dtype])
    seconds = [timed(lambda: a @ a) for _ in range(12)]
    return 2 * size**3 / median(seconds[2:])


def reset_peak() -> None:
    """Reset the peak of allocated GPU memory. On a CPU, the peak of the process cannot be reset."""
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float:
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure(
    side: str, classes: int, backbone: str, dtype: str, threads: int, limit_gb: float, matrix_size: int
) -> Figures:
    """Return seconds per step, operations, their rate and peak memory, or {"fits": False}."""
    torch.set_num_threads(threads)
    if DEVICE == "cpu":
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gb * 1e9),) * 2)
    try:
        run = make_step(side, classes, backbone, dtype)
        run()
        rates, seconds = [product_rate(dtype, matrix_size)], []
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
    share = flops / median(seconds) / median(rates)
    return {"fits": True, "seconds": seconds, "flops": flops, "share": share, "rates": rates, "peak_gb": peak}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--classes", type=int, nargs="+", default=[24, 100], help="numbers of classes")
        parser.add_argument("--dtypes", nargs="+", default=["fp32"], choices=DTYPES, help="precisions")
        parser.add_argument("--backbone", default=BACKBONE, help="CLIP backbone")
        parser.add_argument("--limit-gb", type=float, default=24.0, help="memory limit per process")

    args = arguments(__doc__, add, repeats=2)
    if args.side:
        return print_figures(measure(**args.side))
    matrix_size = 2048
    if args.quick:
        args.backbone, args.repeats, args.classes, matrix_size = "mini", 1, [4], 256
    rows, everything = [], []
    common = {
        "backbone": args.backbone,
        "threads": args.threads,
        "limit_gb": args.limit_gb,
        "matrix_size": matrix_size,
    }
    for classes in args.classes:
        sides = [("released", "fp32"), *(("ours", dtype) for dtype in args.dtypes)]
        rounds = in_turn(
            [{"side": side, "dtype": dtype, "classes": classes, **common} for side, dtype in sides],
            args,
            killed={"fits": False},
        )
        everything += rounds
        rows += [row(classes, rounds[0], rounds[k], dtype) for k, (_, dtype) in enumerate(sides) if k]
    print(f"{args.backbone}, batch 4, {describe(args.threads, 'the published code in fp32')}")
    head = ("classes", "dtype", "released s", "ours s", "ratio", "released GB", "ours GB", "ratio",
            "ours TFLOP", "share of matmul rate")  # fmt: skip
    print(table(head, rows))
    return write_json(args, everything)


def row(classes: int, released: list[Figures], ours: list[Figures], dtype: str) -> tuple[object, ...]:
    """Return a row of the table. A side that exceeds the memory limit has no figures."""
    if not ours[0]["fits"]:
        return (classes, dtype, *["does not fit"] * 8)
    seconds, peak = median_of(ours, "seconds"), median_of(ours, "peak_gb")
    rest = (median_of(ours, "flops") / 1e12, median_of(ours, "share"))
    if not released[0]["fits"]:
        return (classes, dtype, "does not fit", seconds, "-", "does not fit", peak, "-", *rest)
    their_seconds, their_peak = median_of(released, "seconds"), median_of(released, "peak_gb")
    return (classes, dtype, their_seconds, seconds, their_seconds / seconds, their_peak, peak,
            their_peak / peak, *rest)  # fmt: skip


if __name__ == "__main__":
    main()
