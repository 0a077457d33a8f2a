"""What ProMetaR's parts add once each composition has its own best settings.

    python benchmarks/tuned.py [--sets cells leaves flags textures] [--pairs 8] [--searches 2] [--epochs 5]
        [--out DIR] [--jobs 2] [--doc docs/results.md] [--quick]

ProMetaR, and the same without one part: without the gate (both regularizers at half their weight, as a gate
at its start has them), without the meta phase, without task augmentation. On each data set each composition
meets the released settings and those of the portfolio, which were found on other data sets, and takes what
scores best by `drift`, a search's default objective (its mean over --searches training seeds). It is trained
with --pairs fresh seeds, the same for all compositions, and tested. The same command goes on from the
records.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from common import describe, parser_of, publish, table
from records import (
    SCORES,
    Record,
    Wanted,
    mean_and_interval,
    on_mini,
    paired,
    run_all,
    run_options,
    seen_by_a_search,
    values_of,
)

from tune.space.portfolio import shipped

BASELINE = "prometar"
COMPOSITIONS: dict[str, dict[str, Any]] = {
    BASELINE: {},
    "without the gate": {"modulator.kind": "constant"},
    "without the meta phase": {"inner.kind": "none"},
    "without task augmentation": {"task.augmentation": "none"},
}
FRESH = 100  # seeds of the tests begin behind it


@dataclass(frozen=True)
class Question:
    """What one composition on one data set is asked."""

    composition: str
    dataset: str
    epochs: int

    @property
    def candidates(self) -> list[dict[str, Any]]:
        """The released settings first."""
        return [{}, *shipped().choose(without=(self.dataset,))]

    def run(self, candidate: int, seed: int) -> Wanted:
        """The composition's own setting wins over the candidate's."""
        settings = {**self.candidates[candidate], **COMPOSITIONS[self.composition]}
        config = on_mini(settings, self.dataset, epochs=self.epochs, seed=seed)
        name = f"{self.dataset}/{self.composition.replace(' ', '-')}-{candidate}-seed{seed}"
        return Wanted(name, config, signals=seen_by_a_search)

    def searched(self, searches: int) -> list[list[Wanted]]:
        """By candidate."""
        seeds = range(1, searches + 1)
        return [[self.run(k, seed) for seed in seeds] for k in range(len(self.candidates))]

    def best(self, records: Mapping[str, Record], searches: int) -> int:
        """The candidate with the highest mean score, the earliest of equals; one that failed has none."""
        scores = [
            mean(records[run.name]["signals"].get("objective", 0.0) for run in runs)
            for runs in self.searched(searches)
        ]
        return scores.index(max(scores))


def differences(
    tests: Mapping[Question, Mapping[int, Record]], composition: str, key: str
) -> list[list[float]]:
    """The composition minus ProMetaR, pair by pair, on each data set."""
    return [
        paired(runs, tests[Question(BASELINE, q.dataset, q.epochs)], key)
        for q, runs in tests.items()
        if q.composition == composition
    ]


def results(tests: Mapping[Question, Mapping[int, Record]]) -> tuple[str, str]:
    """Tested figures, and differences from ProMetaR over all pairs and over the data sets' means."""
    figures, rows = [], []
    for name in COMPOSITIONS:
        mine = dict(enumerate(r for q, runs in tests.items() if q.composition == name for r in runs.values()))
        figures.append((name, *(f"{mean(values_of(mine, key)):.1f}" for key in SCORES), len(mine)))
        if name == BASELINE:
            continue
        over = {key: differences(tests, name, key) for key in SCORES}
        pairs = {key: [gain for each in by_set for gain in each] for key, by_set in over.items()}
        cells = (mean_and_interval(gains, signed=True, digits=2) for gains in pairs.values())
        sets = mean_and_interval([mean(each) for each in over["H"]], signed=True, digits=2)
        rows.append((name, *cells, len(pairs["H"]), sets, len(over["H"])))
    head = ("composition", *SCORES)
    return table((*head, "runs"), figures), table((*head, "pairs", "H over data sets", "sets"), rows)


def choices(best: Mapping[Question, int]) -> str:
    """Which candidate each composition took on each data set; 0 is the released settings."""
    sets = list(dict.fromkeys(q.dataset for q in best))
    rows = [(name, *(k for q, k in best.items() if q.composition == name)) for name in COMPOSITIONS]
    return table(("chosen", *sets), rows)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sets", nargs="+", default=["cells", "leaves", "flags", "textures"])
    parser.add_argument("--pairs", type=int, default=8, help="on each data set")
    parser.add_argument("--searches", type=int, default=2, help="seeds that a candidate is scored with")
    parser.add_argument("--epochs", type=int, default=5)
    run_options(parser, out="out/tuned")
    parser.add_argument("--quick", action="store_true", help="one data set, one search, one pair, one epoch")
    parser.add_argument("--doc", type=Path, help="a document whose block `tuned` gets the tables")
    args = parser.parse_args()
    if args.quick:
        args.sets, args.pairs, args.searches, args.epochs = args.sets[:1], 1, 1, 1
        args.out /= "quick"
    # Set by set, so that what is there after an interruption is whole sets.
    asked = [Question(name, dataset, args.epochs) for dataset in args.sets for name in COMPOSITIONS]
    wanted = [run for q in asked for runs in q.searched(args.searches) for run in runs]
    found = run_all(wanted, args.out, jobs=args.jobs)
    best = {q: q.best(found, args.searches) for q in asked}
    seeds = range(FRESH + 1, FRESH + 1 + args.pairs)
    finals = {q: {seed: q.run(best[q], seed) for seed in seeds} for q in asked}
    tested = run_all([run for runs in finals.values() for run in runs.values()], args.out, jobs=args.jobs)
    tests = {q: {seed: tested[run.name] for seed, run in runs.items()} for q, runs in finals.items()}
    figures, minus = results(tests)
    head = (
        f"{describe(threads=1)}. {', '.join(args.sets)}; {len(asked[0].candidates)} candidates of "
        f"{args.epochs} epochs, scored with {args.searches} seeds, the chosen tested with {args.pairs}. "
        "Percent on test images:"
    )
    again = "Minus ProMetaR, paired by data set and seed, mean and 95 % t-interval:"
    publish("\n\n".join([head, figures, again, minus, choices(best)]), args.doc, "tuned")


if __name__ == "__main__":
    main()
