"""How the methods do on the embedded benchmark: base, new and H over seeds, mean and standard deviation.

    python benchmarks/embedded.py [--seeds 1 2 3 4 5] [--epochs 10] [--quick] [--json FILE]

Released settings but for the number of epochs that is asked; trained on all base classes, tested once.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from typing import Any

import torch

from prometar.config import Config
from prometar.data.stream import stream_local
from prometar.runs import environment
from prometar.train import Session, build_run

METHODS = ("zero-shot", "ivlp", "ivlp-regularized", "prometar")
SCORES = ("base", "new", "objective")


def run_once(method: str, seed: int, epochs: int) -> dict[str, Any]:
    """The last record of one run, in this process."""
    config = Config(method=method).override({"train.seed": seed, "train.epochs": epochs})
    run = build_run(config, "final")
    with TemporaryDirectory() as folder:
        session = Session(
            run, Path(folder), lambda plan, step: stream_local(plan, run.dataset.source, start_step=step)
        )
        while not session.finished:
            session.epoch()
        return session.history[-1]


def spread(values: list[float]) -> str:
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs")
    parser.add_argument("--json", type=Path, help="write every run's figures here")
    args = parser.parse_args()
    seeds, epochs = ([1], 2) if args.quick else (args.seeds, args.epochs)
    torch.set_num_threads(args.threads)
    results: dict[str, list[dict[str, Any]]] = {}
    machine = platform.processor() or platform.machine()
    print(f"{len(seeds)} seeds, {epochs} epochs, {machine}, torch {torch.__version__}")
    print("| method | base | new | H | seconds a run |\n|---|---|---|---|---|")
    for method in METHODS:
        rows = results[method] = []
        seconds = []
        for seed in seeds:
            started = time.perf_counter()
            rows.append({"seed": seed, **run_once(method, seed, epochs)})
            seconds.append(time.perf_counter() - started)
        figures = " | ".join(spread([row[key] for row in rows]) for key in SCORES)
        print(f"| {method} | {figures} | {mean(seconds):.0f} |", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"environment": environment(), "epochs": epochs, "runs": results}, indent=1)
        )


if __name__ == "__main__":
    main()
