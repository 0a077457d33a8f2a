"""Every method on the embedded benchmark, and ProMetaR with one part changed: base, new and H over seeds.

    python benchmarks/embedded.py [--seeds 1 2 3 4 5] [--arms NAME ...] [--out DIR] [--jobs 2] [--quick]
        [--tables] [--doc docs/results.md]

Each at its published settings, trained on all base classes, tested once. A run leaves a record in --out and
is not made again: the same command goes on, another choice of seeds or arms adds to what is there.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import describe, parser_of, publish, table
from records import (
    SCORES,
    Record,
    Wanted,
    mean_and_interval,
    paired,
    read_all,
    run_all,
    run_options,
    values_of,
)

from prometar.config.recipes import NAMES
from prometar.config.settings import configure

DIGITS = dict.fromkeys(SCORES, 1) | {"alignment": 3}
BASELINE = "prometar"


@dataclass(frozen=True)
class Arm:
    """A method, and what is set apart from its published settings."""

    method: str = BASELINE
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def change(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.settings.items())


CHANGED = {
    "no-meta-phase": Arm(settings={"inner.kind": "none"}),
    "no-gate": Arm(settings={"modulator.kind": "constant"}),
    "neither": Arm(settings={"modulator.kind": "constant", "inner.kind": "none"}),
    "projection": Arm(settings={"modulator.kind": "projection"}),
    "no-task-augmentation": Arm(settings={"task.augmentation": "none"}),
    "no-regularizer": Arm(settings={"regularizer.kind": "none"}),
    "gate-configured": Arm(settings={"optim.gate_schedule": "configured"}),
    "input-mixup": Arm(settings={"task.augmentation": "input_mixup"}),
    "cutmix": Arm(settings={"task.augmentation": "cutmix"}),
    "l2": Arm(settings={"regularizer.kind": "l2"}),
    "cosine": Arm(settings={"regularizer.kind": "cosine"}),
    "plus-logits": Arm(settings={"regularizer.logits_weight": 1.0}),
}
"""ProMetaR with one part off, or another in its place; all else as released."""

ARMS = {name: Arm(name) for name in NAMES} | CHANGED


def wanted(arm: str, seed: int, epochs: int | None) -> Wanted:
    """The run of an arm with a seed; `epochs` None: as published."""
    settings = {**ARMS[arm].settings, "train.seed": seed}
    if epochs is not None:
        settings["train.epochs"] = epochs
    return Wanted(f"{arm}-seed{seed}", configure(ARMS[arm].method, settings))


def methods_table(records: Mapping[str, Mapping[int, Record]]) -> str:
    """Means over seeds with 95 % intervals, an arm a row."""
    rows = []
    for name, runs in records.items():
        cells = (mean_and_interval(values_of(runs, key), digits=digits) for key, digits in DIGITS.items())
        rows.append((name, *cells, len(values_of(runs, "H"))))
    return table(("method", *DIGITS, "runs"), rows)


def differences_table(records: Mapping[str, Mapping[int, Record]]) -> str:
    """Each changed arm minus ProMetaR, paired by seed."""
    rows = []
    for name, runs in records.items():
        pairs = {key: paired(runs, records.get(BASELINE, {}), key) for key in DIGITS}
        cells = (mean_and_interval(pairs[key], signed=True, digits=n) for key, n in DIGITS.items())
        if name in CHANGED:
            rows.append((name, f"`{ARMS[name].change}`", *cells, len(pairs["H"])))
    return table(("changed", "setting", *DIGITS, "pairs"), rows)


def report(records: Mapping[str, Mapping[int, Record]], seeds: list[int]) -> str:
    """Both tables, and what they were made on."""
    parts = [
        f"{describe(threads=1)}. Mean and 95 % t-interval over seeds {', '.join(map(str, seeds))}; accuracy "
        "in percent; alignment is the mean cosine of support and query gradient along the run.",
        methods_table(records),
        "ProMetaR with one part changed, minus ProMetaR, paired by seed:",
        differences_table(records),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME")
    run_options(parser, out="out/embedded")
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch, into --out's folder quick")
    parser.add_argument("--tables", action="store_true", help="run nothing: the tables of what is there")
    parser.add_argument("--doc", type=Path, help="a document whose block `embedded` gets the tables")
    args = parser.parse_args()
    seeds, epochs, out = ([1], 1, args.out / "quick") if args.quick else (args.seeds, None, args.out)
    runs = {(arm, seed): wanted(arm, seed, epochs) for seed in seeds for arm in args.arms}
    asked = list(runs.values())
    found = read_all(asked, out) if args.tables else run_all(asked, out, jobs=args.jobs)
    records: dict[str, dict[int, Record]] = {}
    for arm in args.arms:
        ours = {seed: found[name] for seed in seeds if (name := runs[arm, seed].name) in found}
        records |= {arm: ours} if ours else {}
    publish(report(records, seeds), args.doc, "embedded")


if __name__ == "__main__":
    main()
