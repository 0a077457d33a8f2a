"""What the gate and the meta phase add once each composition has its own best settings.

    python benchmarks/tuned.py [--searches 5] [--trials 12] [--epochs 5] [--out DIR] [--jobs 2] [--quick]
        [--doc docs/results.md]

ProMetaR, the same without its gate (both regularizers at half their weight, as a gate at its start has them),
and without gate and meta phase. A search tries the released settings and --trials - 1 random draws from the
space `full` on `class_holdout`, and keeps the best; that is trained on all base classes and tested once, with
a seed that no search has seen. Searches differ in images and draws; within one, compositions meet the same
images, and the same values of all settings that they share. So differences are taken search by search, and
their interval covers what another search would have found, not only another training seed. The same command
goes on from the records in --out.
"""

from __future__ import annotations

import argparse
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import describe, table
from records import Record, Wanted, mean_and_interval, paired, publish, run_all, values_of

from prometar.config.settings import configure
from tune.space.spaces import load_space

SCORES = ("base", "new", "H")
BASELINE = "prometar"
COMPOSITIONS: dict[str, dict[str, Any]] = {
    BASELINE: {"modulator.kind": "gate"},
    "no-gate": {"modulator.kind": "constant"},
    "neither": {"modulator.kind": "constant", "inner.kind": "none"},
}
UNSEEN = 100  # a search's test has its seed plus this


@dataclass(frozen=True)
class RandomDraws:
    """Values keyed by (search, trial, setting): a setting has the same one in every composition."""

    search: int
    trial: int

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.search, self.trial, zlib.crc32(name.encode())])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            return float(np.exp(self._rng(name).uniform(np.log(low), np.log(high))))
        return float(self._rng(name).uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return round(self.suggest_float(name, low, high, log=log))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[self._rng(name).integers(len(choices))]


def settings_of(search: int, trial: int) -> dict[str, Any]:
    """Trial 0 is the released settings, as in `tune/search.py`."""
    return load_space("full").draw(RandomDraws(search, trial)) if trial else {}


def run_of(composition: str, search: int, trial: int, epochs: int, *, final: bool) -> Wanted:
    """A trial, or the test of its settings."""
    seed = search + (UNSEEN if final else 0)
    settings = {**settings_of(search, trial), **COMPOSITIONS[composition]}
    config = configure(BASELINE, {**settings, "train.epochs": epochs, "train.seed": seed})
    name = f"{composition}-search{search}-trial{trial:02d}{'-test' if final else ''}"
    return Wanted(name, config, "final" if final else "class_holdout")


def best_trial(records: Mapping[str, Record], composition: str, search: int, trials: int, epochs: int) -> int:
    """The trial with the highest H on the search's images, the earliest of equals; a failed one has none."""

    def score(trial: int) -> float:
        return records[run_of(composition, search, trial, epochs, final=False).name]["H"] or 0.0

    return max(range(trials), key=lambda trial: (score(trial), -trial))


def tests_table(tests: Mapping[tuple[str, str], Mapping[int, Record]]) -> str:
    """Tested figures of each composition, and its differences from ProMetaR, search by search."""
    rows = []
    for (composition, which), runs in tests.items():
        figures = (mean_and_interval(values_of(runs, key)) for key in SCORES)
        difference = paired(runs, tests[BASELINE, which], "H")
        minus = "" if composition == BASELINE else mean_and_interval(difference, signed=True)
        rows.append((composition, which, *figures, minus, len(values_of(runs, "H"))))
    return table(("composition", "settings", *SCORES, "H minus ProMetaR's", "searches"), rows)


def gains_table(tests: Mapping[tuple[str, str], Mapping[int, Record]]) -> str:
    """Best found minus released settings of each composition, with the same seeds."""
    rows = []
    for composition in COMPOSITIONS:
        best, released = tests[composition, "best found"], tests[composition, "released"]
        gains = (mean_and_interval(paired(best, released, key), signed=True) for key in SCORES)
        rows.append((composition, *gains, len(best)))
    return table(("composition", *SCORES, "searches"), rows)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--searches", type=int, default=5)
    parser.add_argument("--trials", type=int, default=12, help="of each composition in each search")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/tuned"), help="the records' folder")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--quick", action="store_true", help="one search, two trials of one epoch")
    parser.add_argument("--doc", type=Path, help="a document whose block `tuned` gets the tables")
    args = parser.parse_args()
    searches, trials, epochs = (1, 2, 1) if args.quick else (args.searches, args.trials, args.epochs)
    out = args.out / "quick" if args.quick else args.out
    seeds = range(1, searches + 1)
    # Search by search, so that what is there after an interruption is whole searches.
    wanted = [
        run_of(c, s, t, epochs, final=False) for s in seeds for c in COMPOSITIONS for t in range(trials)
    ]
    records = run_all(wanted, out, jobs=args.jobs)
    best = {(c, s): best_trial(records, c, s, trials, epochs) for c in COMPOSITIONS for s in seeds}
    finals = {
        (c, which): {
            s: run_of(c, s, best[c, s] if which == "best found" else 0, epochs, final=True) for s in seeds
        }
        for which in ("released", "best found")
        for c in COMPOSITIONS
    }
    unique = {run.name: run for runs in finals.values() for run in runs.values()}
    found = run_all(list(unique.values()), out, jobs=args.jobs)
    tests = {key: {s: found[run.name] for s, run in runs.items()} for key, runs in finals.items()}
    parts = [
        f"{describe(threads=1)}. {trials} trials of {epochs} epochs a composition and search; mean and 95 % "
        "t-interval over searches, accuracy in percent on test images.",
        tests_table(tests),
        "Best found minus released settings, same seeds:",
        gains_table(tests),
    ]
    publish("\n\n".join(parts), args.doc, "tuned")
    for (composition, search), trial in best.items():
        print(f"{composition}, search {search}: trial {trial} {settings_of(search, trial) or 'released'}")


if __name__ == "__main__":
    main()
