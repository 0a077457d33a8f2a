"""Iterations of P configurations in lockstep, against as many iterations one after another.

    python benchmarks/lockstep.py [--configurations 1 4 16] [--backbone mini] [--repeats 3] [--threads 2]
        [--quick] [--json FILE]

On `textures`, 24 classes. All see the same four images; they differ in weights and rates. Each side runs in a
process of its own, in turn; a figure is the median over iterations after one that is not counted. On a GPU
the step in lockstep is recorded as a CUDA graph.
"""

import argparse

import torch
from common import Figures, arguments, describe, in_turn, median_of, table, tell, write_json
from step import DEVICE, peak_gb, reset_peak, timed

from prometar.config.settings import Config
from prometar.data.streaming.stream import stream_local
from prometar.step.cuda_graph import Graph
from prometar.step.vmapped import stack, step_all
from prometar.training.epoch import prepare, rates, train_step
from prometar.training.run import build_run, initial_state

COUNTED = 3


def measure(side: str, configurations: int, backbone: str, threads: int) -> Figures:
    """Seconds an iteration of all configurations, and the process's peak memory, where that fits a GPU."""
    torch.set_num_threads(threads)
    try:
        return {"fits": True, **_measured(side, configurations, backbone)}
    except RuntimeError as error:  # what ends a recording may hide why it was ended
        if not isinstance(error.__context__ or error, torch.OutOfMemoryError):
            raise
        return {"fits": False}


def _measured(side: str, configurations: int, backbone: str) -> Figures:
    config = Config().override(
        {"backbone.name": backbone, "backbone.pretrained": None if backbone == "mini" else "random"}
    )
    runs = [
        build_run(
            config.override({"regularizer.text_weight": 50 - k, "inner.lr": 5e-4 * (k + 1)}), "all_classes"
        )
        for k in range(configurations)
    ]
    pictures = next(iter(stream_local(runs[0].plan, runs[0].dataset.source)))
    start, now, graph = initial_state(runs[0]), rates(config, 1), Graph()

    def in_turn() -> None:
        for run in runs:
            train_step(run, start, pictures, now)

    def together() -> None:
        batches = prepare(runs, pictures, 0, by_labels=True)
        step_all(runs[0].model, methods, stacked, batches, [now] * configurations, graph=graph)

    methods = [run.method for run in runs]
    stacked = stack([start] * configurations)
    iterate = in_turn if side == "one by one" else together
    reset_peak()
    iterate()
    return {"seconds": [timed(iterate) for _ in range(COUNTED)], "peak_gb": peak_gb()}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--configurations", type=int, nargs="+", default=[1, 4, 16])
        parser.add_argument("--backbone", default="mini")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return tell(measure(**args.side))
    if args.quick:
        args.repeats, args.configurations = 1, [2]
    common = {"backbone": args.backbone, "threads": args.threads}
    sides = [
        {"side": side, "configurations": count, **common}
        for count in args.configurations
        for side in ("one by one", "lockstep")
    ]
    rounds = in_turn(sides, args)
    one = median_of(rounds[0], "seconds")
    rows = []
    for k, count in enumerate(args.configurations):
        alone, together = rounds[2 * k], rounds[2 * k + 1]
        if not all(each["fits"] for each in alone + together):
            rows.append((count, *["does not fit"] * 6))
            continue
        seconds = median_of(alone, "seconds"), median_of(together, "seconds")
        peaks = median_of(alone, "peak_gb"), median_of(together, "peak_gb")
        rows.append((count, *seconds, seconds[0] / seconds[1], seconds[1] / one, *peaks))
    print(f"{args.backbone} on {DEVICE}, 24 classes, batch 4, {describe(args.threads)}")
    head = ("configurations", "one by one s", "lockstep s", "ratio", "lockstep in iterations of one",
            "one by one GB", "lockstep GB")  # fmt: skip
    print(table(head, rows))
    return write_json(args, rounds)


if __name__ == "__main__":
    main()
