"""Time and memory of one ProMetaR iteration: the released procedure, plainly transcribed, against ours.

    python benchmarks/step.py [--classes 24] [--repeats 5] [--threads 2] [--quick] [--json FILE]

ViT-B/16 with random weights, batch 4, float32, images and prompts the same for both. Each side runs in a
process of its own, in turn; a figure is the median over `--repeats` iterations after one that is not counted,
peak memory that of the whole process. `tests/parity` proves that both compute the same.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from prometar.backbone.openclip import load_backbone, tokenize
from prometar.batch import make_batch
from prometar.config import Config
from prometar.methods import build
from prometar.model import build_model, prompt_texts
from prometar.parts.tasks import one_class_out
from prometar.runs import environment
from prometar.state import State
from prometar.step import Rates, step

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("released", "ours")


def iteration(side: str, num_classes: int, backbone: str) -> Callable[[], object]:
    """One iteration of a side, from the same start on the same batch each time."""
    loaded = load_backbone(backbone, "random")
    clip, method = loaded.clip, build(Config())
    names = [f"class number {i}" for i in range(num_classes)]
    tokens = tokenize(prompt_texts(names, method.prompts, init="a photo of a", template="{}"))
    generator = torch.Generator().manual_seed(0)
    teacher = F.normalize(torch.randn(num_classes, clip.embed_dim, generator=generator), dim=-1)
    prompts = method.prompts.init(clip, tokenize(["a photo of a"])[0, 1:5], generator)
    state = State.start(prompts, method.modulator.init(prompts, generator))
    images = torch.randn(4, 3, clip.image_size, clip.image_size, generator=generator).to(clip.dtype)
    labels = torch.tensor([0, 1, 2, 2])
    task = one_class_out(labels, method.augmentation, np.random.default_rng(0))
    if side == "released":
        sys.path.insert(0, str(ROOT))
        from tests.parity.released import Released

        plain = replace(  # random weights serve one activation as well as the other
            clip,
            text=replace(clip.text, activation="quick_gelu"),
            vision=replace(clip.vision, activation="quick_gelu"),
        )
        reference = Released(
            plain, tokens, teacher, state.prompts, state.gate, 50, 20, 8, 5e-4, 5e-4, 0.0025, 1e-6
        )
        return lambda: reference.step(images, labels, task)
    model = build_model(clip, method.prompts, tokens, teacher)

    def run() -> object:
        batch = make_batch(clip, method, images, labels, task)
        return step(model, method, state, batch, Rates(0.0025, 1e-6))

    return run


def measure(side: str, num_classes: int, backbone: str, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of each counted iteration, and the process's peak memory in GB."""
    torch.set_num_threads(threads)
    run = iteration(side, num_classes, backbone)
    run()
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    return {"side": side, "classes": num_classes, "seconds": seconds, "peak_gb": peak}


def in_a_process(side: str, args: argparse.Namespace, num_classes: int, repeats: int) -> dict[str, Any]:
    command = [
        sys.executable, __file__, "--side", side, "--classes", str(num_classes), "--repeats", str(repeats),
        "--threads", str(args.threads), "--backbone", args.backbone,
    ]  # fmt: skip
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--classes", type=int, nargs="+", default=[24])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--backbone", default="ViT-B-16-quickgelu")
    parser.add_argument("--quick", action="store_true", help="the embedded backbone's size, two repeats")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.backbone, args.repeats = "mini", 2
    if args.side:
        print(json.dumps(measure(args.side, args.classes[0], args.backbone, args.repeats, args.threads)))
        return
    figures = []
    machine = platform.processor() or platform.machine()
    print(f"{args.backbone}, batch 4, fp32, {args.threads} threads, {machine}, torch {torch.__version__}")
    print("| classes | released s | ours s | ratio | released GB | ours GB |\n|---|---|---|---|---|---|")
    for num_classes in args.classes:
        sides = [in_a_process(side, args, num_classes, args.repeats) for side in SIDES]
        figures += sides
        seconds, peaks = [median(s["seconds"]) for s in sides], [s["peak_gb"] for s in sides]
        row = f"{seconds[0]:.3f} | {seconds[1]:.3f} | {seconds[0] / seconds[1]:.2f}"
        print(f"| {num_classes} | {row} | {peaks[0]:.1f} | {peaks[1]:.1f} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"environment": environment(), "figures": figures}, indent=1))


if __name__ == "__main__":
    main()
