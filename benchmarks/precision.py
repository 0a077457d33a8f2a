"""Does bfloat16 cost accuracy? Methods on the embedded benchmark in two precisions, paired by seed.

    python benchmarks/precision.py [--methods prometar ivlp] [--precisions fp32 bf16] [--seeds 1 2 3 4 5]
        [--out DIR] [--jobs 2] [--quick]

Published settings, `textures` and `mini`, trained on all base classes, tested once. Only the precision of the
weights and towers differs. A run leaves a record in --out and is not made again: the same command goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from common import describe, table
from records import Record, Wanted, mean_and_interval, paired, run_all, values_of

from prometar.config.settings import configure

SCORES = ("base", "new", "H")
Records = Mapping[tuple[str, str], Mapping[int, Record]]
"""By method and precision, then by seed."""


def wanted(method: str, precision: str, seed: int, epochs: int | None) -> Wanted:
    """A run; `epochs` None: as published."""
    settings = {"backbone.precision": precision, "train.seed": seed}
    if epochs is not None:
        settings["train.epochs"] = epochs
    return Wanted(f"{method}-{precision}-seed{seed}", configure(method, settings))


def means_table(records: Records) -> str:
    """Means over seeds with 95 % intervals."""
    rows = []
    for (method, precision), runs in records.items():
        rows.append(
            (
                method,
                precision,
                *(mean_and_interval(values_of(runs, key)) for key in SCORES),
                len(values_of(runs, "H")),
            )
        )
    return table(("method", "precision", *SCORES, "runs"), rows)


def differences_table(records: Records, precisions: list[str]) -> str:
    """Each other precision minus the first, paired by seed."""
    first, *others = precisions
    rows = []
    for (method, precision), runs in records.items():
        if precision in others:
            pairs = {key: paired(runs, records[method, first], key) for key in SCORES}
            cells = (mean_and_interval(pairs[key], signed=True, digits=2) for key in SCORES)
            rows.append((method, f"{precision} - {first}", *cells, len(pairs["H"])))
    return table(("method", "difference", *SCORES, "pairs"), rows)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--methods", nargs="+", default=["prometar", "ivlp"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--out", type=Path, default=Path("out/precision"), help="the records' folder")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, into --out's folder quick")
    args = parser.parse_args()
    seeds, epochs, out = ([1], 1, args.out / "quick") if args.quick else (args.seeds, None, args.out)
    runs = {
        (method, precision, seed): wanted(method, precision, seed, epochs)
        for seed in seeds for method in args.methods for precision in args.precisions
    }  # fmt: skip
    found = run_all(list(runs.values()), out, jobs=args.jobs)
    records: dict[tuple[str, str], dict[int, Record]] = {}
    for (method, precision, seed), run in runs.items():
        records.setdefault((method, precision), {})[seed] = found[run.name]
    dtypes = " and ".join(args.precisions)
    print(f"\n{describe(1, dtypes)}\n\nMean and 95 % t-interval over seeds {seeds}; accuracy in percent.\n")
    print(means_table(records))
    print("\nPaired by seed:\n")
    print(differences_table(records, args.precisions))


if __name__ == "__main__":
    main()
