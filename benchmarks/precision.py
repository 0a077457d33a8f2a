"""Accuracy in bf16 minus accuracy in fp32, for each method, paired by dataset and seed.

    python benchmarks/precision.py [--methods NAME ...] [--sets cells textures] [--seeds 1 2 3] [--epochs 3]
        [--minutes M] [--show] [--doc docs/performance.md] [--records FILE] [--quick]

Both sides train `mini` on the CPU from the same seed, with the method's published settings except the number
of epochs, and are tested on base and new classes. Ray and Optuna are not needed. Each finished run is a line
of benchmarks/precision.jsonl. Rerun to add the missing runs, or pass --show to print the table only.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from common import Figures, machine, mean_and_interval, parser_of, publish, table

from prometar.config.recipes import METHODS
from prometar.config.settings import Config
from prometar.metrics import harmonic_mean
from prometar.run_folder import train_run

RECORDS = Path(__file__).with_suffix(".jsonl")
REFERENCE = "fp32"
COMPARED = "bf16"
METRICS = ("base", "new", "H")


class Key(NamedTuple):
    """Identity of a run. Two runs that differ only in precision are a pair."""

    dataset: str
    method: str
    seed: int
    epochs: int
    precision: str


def keys(sets: Sequence[str], methods: Sequence[str], seeds: Sequence[int], epochs: int) -> Iterator[Key]:
    """Yield all runs. Runs of a pair are neighbors, and each seed covers all methods before the next seed."""
    for seed in seeds:
        for dataset in sets:
            for method in methods:
                for precision in (REFERENCE, COMPARED):
                    yield Key(dataset, method, seed, epochs, precision)


def measure(key: Key) -> Figures:
    """Train and test a run. Return its accuracies in percent."""
    settings = {
        "data.name": key.dataset,
        "train.seed": key.seed,
        "train.epochs": key.epochs,
        "backbone.precision": key.precision,
    }
    config = Config(method=key.method).override(settings)
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        last = train_run(config, Path(folder) / "run")
    accuracies = {"base": last["base"], "new": last["new"]}
    seconds = round(time.perf_counter() - started, 1)
    return {**accuracies, "H": harmonic_mean(accuracies), "seconds": seconds}


def read(records: Path) -> dict[Key, Figures]:
    """Return the stored runs. A line that an interruption has cut off is ignored."""
    found: dict[Key, Figures] = {}
    lines = records.read_text("utf-8").splitlines() if records.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found[Key(*(record[name] for name in Key._fields))] = record
    return found


def append(records: Path, record: Mapping[str, Any]) -> None:
    """Append a line to the records, after a line that an interruption has cut off, if there is one."""
    text = records.read_text("utf-8") if records.exists() else ""
    start = "" if not text or text.endswith("\n") else "\n"
    with records.open("a", encoding="utf-8") as file:
        file.write(start + json.dumps(record) + "\n")


def differences(found: Mapping[Key, Figures], method: str, epochs: int, metric: str) -> list[float]:
    """Return the paired differences of a metric, over all datasets and seeds that have both runs."""
    pairs = []
    for key, figures in sorted(found.items()):
        if (key.method, key.epochs, key.precision) == (method, epochs, COMPARED):
            reference = found.get(key._replace(precision=REFERENCE))
            if reference is not None:
                pairs.append(figures[metric] - reference[metric])
    return pairs


def summary(found: Mapping[Key, Figures], epochs: int) -> str:
    """Return a table of the mean differences and 95% intervals of each method with a complete pair."""
    rows = []
    for method in METHODS:
        by_metric = {metric: differences(found, method, epochs, metric) for metric in METRICS}
        if by_metric["H"]:
            intervals = [mean_and_interval(by_metric[metric]) for metric in METRICS]
            rows.append((method, len(by_metric["H"]), *intervals))
    return table(("method", "pairs", *METRICS), rows)


def train_missing(args: argparse.Namespace, found: dict[Key, Figures]) -> None:
    """Train the runs that `found` lacks. Add each to `found` and to the records. Stop after --minutes."""
    deadline = time.monotonic() + 60 * args.minutes if args.minutes is not None else float("inf")
    for key in keys(args.sets, args.methods, args.seeds, args.epochs):
        if key in found:
            continue
        if time.monotonic() > deadline:
            break
        threads = os.environ.get("OMP_NUM_THREADS")
        record = {**key._asdict(), **measure(key), "machine": machine() | {"threads": threads}}
        append(args.records, record)
        found[key] = record
        print(*key, f"H {record['H']:.2f}, {record['seconds']} s", flush=True)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), help="methods to train")
    parser.add_argument("--sets", nargs="+", default=["cells", "textures"], help="datasets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="seeds of the pairs")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each run")
    parser.add_argument("--minutes", type=float, help="start no run after this time")
    parser.add_argument("--records", type=Path, default=RECORDS, help="file of the finished runs")
    parser.add_argument("--show", action="store_true", help="only print the table")
    parser.add_argument("--doc", type=Path, help="document whose block `precision` is replaced")
    parser.add_argument("--quick", action="store_true", help="one pair of one epoch, to check the script")
    args = parser.parse_args()
    if args.quick:
        args.methods = args.methods[:1]
        args.sets = ["cells"]
        args.seeds = [1]
        args.epochs = 1
    found = read(args.records)
    if not args.show:
        train_missing(args, found)
    text = (
        f"Accuracy in {COMPARED} minus accuracy in {REFERENCE} after {args.epochs} epochs, in points:\n\n"
        + summary(found, args.epochs)
    )
    publish(text, args.doc, "precision")


if __name__ == "__main__":
    main()
