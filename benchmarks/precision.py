"""Does bfloat16 cost accuracy? Methods on the embedded benchmark in two precisions, paired by seed.

    python benchmarks/precision.py [--methods prometar ivlp] [--precisions fp32 bf16] [--seeds 1 2 3 4 5]
        [--sets textures] [--out DIR] [--jobs 2] [--json FILE] [--quick]

Published settings and `mini`, trained on all base classes, tested once; several data sets count alike. Only
the precision of the weights and towers differs. A run leaves a record in --out and is not made again: the
same command goes on.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from common import describe, parser_of, table
from records import SCORES, Record, Wanted, mean_and_interval, paired, run_all, run_options, values_of

from prometar.config.settings import configure
from prometar.metrics import t_interval

Records = Mapping[tuple[str, str], Mapping[tuple[str, int], Record]]
"""By method and precision, then by data set and seed."""


def wanted(method: str, precision: str, dataset: str, seed: int, epochs: int | None) -> Wanted:
    """A run; `epochs` None: as published."""
    settings = {"backbone.precision": precision, "train.seed": seed, "data.name": dataset}
    if epochs is not None:
        settings["train.epochs"] = epochs
    return Wanted(f"{dataset}/{method}-{precision}-seed{seed}", configure(method, settings))


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


def differences(records: Records, precisions: list[str]) -> dict[tuple[str, str], dict[str, list[float]]]:
    """By method and precision, each other precision minus the first: pairs of data set and seed."""
    first, *others = precisions
    return {
        (method, precision): {key: paired(runs, records[method, first], key) for key in SCORES}
        for (method, precision), runs in records.items()
        if precision in others
    }


def differences_table(found: Mapping[tuple[str, str], Mapping[str, list[float]]], first: str) -> str:
    """Means of paired differences with 95 % intervals."""
    rows = []
    for (method, precision), pairs in found.items():
        cells = (mean_and_interval(pairs[key], signed=True, digits=2) for key in SCORES)
        rows.append((method, f"{precision} - {first}", *cells, len(pairs["H"])))
    return table(("method", "difference", *SCORES, "pairs"), rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--methods", nargs="+", default=["prometar", "ivlp"])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--sets", nargs="+", default=["textures"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    run_options(parser, out="out/precision")
    parser.add_argument("--json", type=Path, help="a file for the differences in H")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, into --out's folder quick")
    args = parser.parse_args()
    seeds, epochs, out = ([1], 1, args.out / "quick") if args.quick else (args.seeds, None, args.out)
    runs = {
        (method, precision, dataset, seed): wanted(method, precision, dataset, seed, epochs)
        for seed in seeds for dataset in args.sets
        for method in args.methods for precision in args.precisions
    }  # fmt: skip
    done = run_all(list(runs.values()), out, jobs=args.jobs)
    records: dict[tuple[str, str], dict[tuple[str, int], Record]] = {}
    for (method, precision, dataset, seed), run in runs.items():
        records.setdefault((method, precision), {})[dataset, seed] = done[run.name]
    dtypes, sets = " and ".join(args.precisions), ", ".join(args.sets)
    print(f"\n{describe(1, dtypes)}\n")
    print(f"Mean and 95 % t-interval over {sets}, seeds {seeds}; accuracy in percent.\n")
    print(means_table(records))
    found = differences(records, args.precisions)
    print("\nPaired by data set and seed:\n")
    print(differences_table(found, args.precisions[0]))
    if args.json:
        args.json.write_text(json.dumps({"differences": in_h(found, args.precisions[0])}), "utf-8")


def in_h(
    found: Mapping[tuple[str, str], Mapping[str, list[float]]], first: str
) -> dict[str, dict[str, float]]:
    """Differences in H with their intervals, as plain figures."""
    intervals = {
        f"{method}, {precision} - {first}": t_interval(pairs["H"])
        for (method, precision), pairs in found.items()
    }
    return {name: asdict(each) for name, each in intervals.items() if each is not None}


if __name__ == "__main__":
    main()
