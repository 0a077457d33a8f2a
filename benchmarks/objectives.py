"""How well ways of scoring settings without a test image rank them by what they test.

    python benchmarks/objectives.py [--sets textures ...] [--settings 32] [--seeds 1 2] [--epochs 5]
        [--holdout] [--space recipe] [--out DIR] [--jobs 2] [--doc docs/objectives.md] [--quick]

The released settings and random draws of a space, each trained on all base classes and tested with several
seeds; what a search could have seen of the same prompts (validation images of base classes, drift on foreign
names) is measured beside the test. `--holdout` scores each on held-out base classes too, twice the work.
A way of scoring sees one seed and is judged by the tests of the others. Standard errors are of a bootstrap
over sets and settings. The same command goes on from the records in --out. Only development sets are read.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import describe, require_development, table
from numpy.typing import NDArray
from records import Record, Wanted, publish, read_all, run_all
from scipy.stats import spearmanr

from prometar.config.settings import configure
from prometar.metrics import harmonic_mean
from prometar.training.drift import LOSS_PER_NAT
from tune.space.portfolio import shipped
from tune.space.spaces import load_space
from tune.stages.choice import Belief, Calibration

Floats = NDArray[np.float64]
BUDGET = 24  # settings that a search sees
RESAMPLED = 400
CONTENDERS = 5


@dataclass(frozen=True)
class Table:
    """One data set's figures: settings x seeds, released settings first.

    Args:
        tests: H on the test images. base, new: Accuracy on them. signals: By name, what a search could see.
        holdout: By fold, H over base classes seen and held out.
    """

    tests: Floats
    base: Floats
    new: Floats
    signals: Mapping[str, Floats]
    holdout: Mapping[int, Floats]


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


def settings_of(space: str, number: int) -> dict[str, Any]:
    """Number 0 is the released settings."""
    return load_space(space).draw(RandomDraws(0, number)) if number else {}


def runs_of(args: argparse.Namespace, dataset: str) -> dict[tuple[int, int, str], Wanted]:
    """By setting, seed and way (`final`, or a fold)."""
    found = {}
    for seed in args.seeds:
        for number in range(args.settings + 1):
            values = {
                **settings_of(args.space, number),
                "data.name": dataset, "data.root": args.data_root, "backbone.name": "mini",
                "train.epochs": args.epochs, "train.seed": seed,
            }  # fmt: skip
            config = configure("prometar", values)
            name = f"{dataset}/{args.space}-{number:03d}-seed{seed}"
            found[number, seed, "final"] = Wanted(name, config, signals=True)
            for fold in range(2) if args.holdout else ():
                found[number, seed, str(fold)] = Wanted(f"{name}-fold{fold}", config, "class_holdout", fold)
    return found


def collect(args: argparse.Namespace, dataset: str, runs: Mapping[Any, Wanted]) -> Table:
    """Settings that failed score nothing and test nothing."""
    records = read_all(runs.values(), args.out)

    def grid(way: str, figure: Callable[[Record], float | None]) -> Floats:
        rows = [
            [figure(records[runs[number, seed, way].name]) or 0.0 for seed in args.seeds]
            for number in range(args.settings + 1)
        ]
        return np.array(rows, np.float64)

    seen = ("base", "new", "zero_shot", "divergence", "agreement", "text_cosine", "image_cosine")
    names = (*seen, "imagenet divergence")
    return Table(
        grid("final", lambda record: record["H"]),
        grid("final", lambda record: record["base"]),
        grid("final", lambda record: record["new"]),
        {
            name: grid("final", lambda record, key=name: record["signals"].get(key, math.nan))
            for name in names
        },
        {fold: grid(str(fold), lambda record: record["H"]) for fold in range(2) if args.holdout},
    )


def _both(base: Floats, new: Floats) -> Floats:
    return np.vectorize(lambda b, n: harmonic_mean({"base": b, "new": n}))(base, new)


def _drift(t: Table, divergence: str, loss: float) -> Floats:
    return _both(t.signals["base"], t.signals["zero_shot"] * np.exp(-loss * t.signals[divergence]))


DRIFT = f"drift, {LOSS_PER_NAT} a nat"
WAYS: dict[str, Callable[[Table], Floats]] = {
    "base validation accuracy": lambda t: t.signals["base"],
    DRIFT: lambda t: _drift(t, "divergence", LOSS_PER_NAT),
    "drift, 0.02 a nat": lambda t: _drift(t, "divergence", 0.02),
    "drift, 0.1 a nat": lambda t: _drift(t, "divergence", 0.1),
    "drift, 0.2 a nat": lambda t: _drift(t, "divergence", 0.2),
    "drift on ImageNet's names": lambda t: _drift(t, "imagenet divergence", LOSS_PER_NAT),
    "drift (agreement)": lambda t: _both(
        t.signals["base"], t.signals["zero_shot"] * (0.8 + 0.2 * t.signals["agreement"])
    ),
    "drift (text cosine)": lambda t: _both(
        t.signals["base"], t.signals["zero_shot"] * (0.8 + 0.2 * t.signals["text_cosine"])
    ),
    "drift alone": lambda t: -t.signals["divergence"],
    "one half held out": lambda t: t.holdout[0],
    "both halves held out": lambda t: (t.holdout[0] + t.holdout[1]) / 2,
    "the test itself, another seed": lambda t: t.tests,
}
_FOLDS = {"one half held out", "both halves held out"}


def judge(scores: Floats, tests: Floats, seed: int) -> dict[str, float]:
    """How the scores of one seed rank by the tests of the others."""
    score, test = np.nan_to_num(scores[:, seed], nan=-1e9), _others(tests, seed)
    good = test >= np.median(test)
    picks = _picks(score, test)
    return {
        "rank": float(spearmanr(score, test).statistic),
        "rank of good": float(spearmanr(score[good], test[good]).statistic),
        "gain": float(np.mean(picks - test[0])),
        "worse": float(np.mean(picks < test[0] - 0.5)),
        "regret": float(test.max() - picks.mean()),
    }


def _others(tests: Floats, seed: int) -> Floats:
    """What the other seeds test, their mean; of a single seed, its own."""
    others = [k for k in range(tests.shape[1]) if k != seed] or [seed]
    means: Floats = tests[:, others].mean(axis=1)
    return means


def _picks(score: Floats, test: Floats) -> Floats:
    """What is tested of the best-scored of `BUDGET` settings, the released ones always among them."""
    rng, size = np.random.default_rng(0), min(BUDGET, len(score))
    drawn = [np.r_[0, 1 + rng.permutation(len(score) - 1)[: size - 1]] for _ in range(RESAMPLED)]
    return np.array([test[rows[np.argmax(score[rows])]] for rows in drawn])


def summary(way: Callable[[Table], Floats], tables: Sequence[Table]) -> dict[str, float]:
    """Means over sets and seeds."""
    found = [judge(way(t), t.tests, seed) for t in tables for seed in range(t.tests.shape[1])]
    return {key: float(np.nanmean([each[key] for each in found])) for key in found[0]}


def error_of(way: Callable[[Table], Floats], tables: Sequence[Table]) -> float:
    """Standard error of the mean rank correlation: sets and settings drawn again."""
    rng, means = np.random.default_rng(1), []
    for _ in range(100):
        ranks = []
        for k in rng.integers(len(tables), size=len(tables)):
            scores, tests = way(tables[k]), tables[k].tests
            rows = rng.integers(len(tests), size=len(tests))
            for seed in range(tests.shape[1]):
                others = _others(tests, seed)[rows]
                ranks.append(spearmanr(np.nan_to_num(scores[rows, seed], nan=-1e9), others).statistic)
        means.append(np.nanmean(ranks))
    return float(np.std(means))


def calibration(way: Callable[[Table], Floats], tables: Sequence[Table]) -> tuple[Calibration, Belief]:
    """How a contender's lead goes with its gain, and how such gains are spread.

    One seed chooses the best-scored settings, another measures their lead, a third tests them. Variances and
    covariances are of different seeds, so that the noise of one is not in them.
    """
    leads, gains = [], []
    for found in tables:
        scores, tests = way(found), found.tests
        for seed in range(tests.shape[1]):
            best = 1 + np.argsort(-scores[1:, seed])[:CONTENDERS]
            others = [k for k in range(tests.shape[1]) if k != seed]
            leads.append((scores[best] - scores[0])[:, others])
            gains.append((tests[best] - tests[0])[:, others])
    lead, gain = np.concatenate(leads), np.concatenate(gains)
    variance = _covariance(gain, gain)
    slope = _covariance(lead, gain) / variance
    spread = max(_covariance(lead, lead) - slope**2 * variance, 0.0)
    noise, test_noise = lead.var(axis=1, ddof=1).mean(), gain.var(axis=1, ddof=1).mean()
    print(f"test: a pair's noise {np.sqrt(test_noise):.2f}")
    figures = (lead.mean() - slope * gain.mean(), slope, np.sqrt(spread), np.sqrt(noise))
    return (
        Calibration(*(round(float(x), 2) for x in figures)),
        Belief(round(float(gain.mean()), 2), round(float(np.sqrt(variance)), 2)),
    )


def _covariance(one: Floats, other: Floats) -> float:
    """Of figures of different seeds."""
    one, other = one - one.mean(), other - other.mean()
    pairs = [(i, j) for i in range(one.shape[1]) for j in range(one.shape[1]) if i != j]
    return float(np.mean([(one[:, i] * other[:, j]).mean() for i, j in pairs]))


def results(tables: Mapping[str, Table]) -> str:
    rows = []
    for name, way in WAYS.items():
        if name in _FOLDS and not all(t.holdout for t in tables.values()):
            continue
        s = summary(way, list(tables.values()))
        error = error_of(way, list(tables.values()))
        rows.append(
            (name, f"{s['rank']:.2f} ± {error:.2f}", f"{s['rank of good']:.2f}", f"{s['gain']:+.2f}",
             f"{100 * s['worse']:.0f} %", f"{s['regret']:.2f}")
        )  # fmt: skip
    columns = ("rank correlation", "among the better half", "pick - released", "worse", "regret")
    return table(("way of scoring", *columns), rows)


def parts(tables: Mapping[str, Table]) -> str:
    """How well base and new accuracy, each alone, are told on each data set."""
    told: dict[str, Callable[[Table], tuple[Floats, Floats]]] = {
        "base, by validation accuracy": lambda t: (t.signals["base"], t.base),
        "new, by divergence": lambda t: (-t.signals["divergence"], t.new),
        "new, by divergence on ImageNet's names": lambda t: (-t.signals["imagenet divergence"], t.new),
        "new, by agreement": lambda t: (t.signals["agreement"], t.new),
        "new, by text cosine": lambda t: (t.signals["text_cosine"], t.new),
        "new, by image cosine": lambda t: (t.signals["image_cosine"], t.new),
        "new, by the test with another seed": lambda t: (t.new, t.new),
    }
    rows = []
    for name, of in told.items():
        ranks = [
            np.mean([judge(*of(t), seed)["rank"] for seed in range(t.new.shape[1])]) for t in tables.values()
        ]
        rows.append((name, *(f"{rank:.2f}" for rank in ranks)))
    return table(("rank correlation", *tables), rows)


def gains(tables: Mapping[str, Table]) -> str:
    """What the settings of the portfolio gained."""
    known = shipped()
    rows = []
    for settings in known.choose(without=()):
        (row,) = (each for each in known.known if dict(each.settings) == settings)
        rows.append((brief(settings), *(f"{row.gains[name]:+.1f}" for name in tables)))
    return table(("settings", *tables), rows)


def brief(settings: Mapping[str, Any]) -> str:
    """Settings of `recipe` in few words."""
    s = settings
    kind = s["regularizer.kind"]
    weights = (
        "no regularizer"
        if kind == "none"
        else (f"{kind} {s['regularizer.text_weight']:.0f} and {s['regularizer.image_weight']:.0f}")
    )
    ends = "averaged" if s["averager.kind"] == "gaussian" else "last epoch"
    return (
        f"{weights}, {ends}, depths {s['prompts.text_depth']} and {s['prompts.vision_depth']}, rate "
        f"{s['optim.lr']:.2g}, crops from {s['augment.crop_scale_min']:.2f}"
    )


def portfolio(args: argparse.Namespace, tables: Mapping[str, Table]) -> dict[str, Any]:
    """What `tune/space/portfolio.py` reads: each setting's mean gain by data set."""
    known = [
        {
            "settings": settings_of(args.space, number),
            "gains": {
                name: round(float((t.tests[number] - t.tests[0]).mean()), 2) for name, t in tables.items()
            },
        }
        for number in range(1, args.settings + 1)
    ]
    return {
        "space": args.space,
        "method": "prometar",
        "backbone": "mini",
        "epochs": args.epochs,
        "seeds": len(args.seeds),
        "known": known,
    }


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--sets", nargs="+", default=["textures"])
    parser.add_argument("--data-root", help="of sets that do not come with the project, such as dtd")
    parser.add_argument("--settings", type=int, default=32, help="random ones, beside the released")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--space", default="recipe")
    parser.add_argument("--holdout", action="store_true", help="score on held-out base classes too")
    parser.add_argument("--out", type=Path, default=Path("out/objectives"), help="the records' folder")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--quick", action="store_true", help="two settings, one epoch")
    parser.add_argument("--doc", type=Path, help="a document whose block `objectives` gets the table")
    parser.add_argument("--portfolio", type=Path, help="write what each setting gained, for first trials")
    args = parser.parse_args()
    if args.quick:
        args.settings, args.epochs, args.seeds, args.out = 2, 1, [1, 2], args.out / "quick"
    if args.quick and (args.doc or args.portfolio):
        parser.error("--quick is no evidence: it writes neither --doc nor --portfolio")
    require_development(args.sets, claim=False)
    runs = {name: runs_of(args, name) for name in args.sets}
    run_all([run for by_key in runs.values() for run in by_key.values()], args.out, jobs=args.jobs)
    tables = {name: collect(args, name, by_key) for name, by_key in runs.items()}
    head = (
        f"{describe(threads=1)}. {', '.join(args.sets)}: the released settings and {args.settings} draws of "
        f"`{args.space}`, {args.epochs} epochs, seeds {', '.join(map(str, args.seeds))}; picks of {BUDGET}."
    )
    publish(f"{head}\n\n{results(tables)}\n\n{parts(tables)}", args.doc, "objectives")
    publish(gains(tables), args.doc, "portfolio")
    if args.portfolio:
        text = json.dumps(portfolio(args, tables), indent=1)
        args.portfolio.write_text(text + "\n", "utf-8")
    if len(args.seeds) > 2:
        for name in (DRIFT, "base validation accuracy"):
            print(f"{name}: {calibration(WAYS[name], list(tables.values()))}")


if __name__ == "__main__":
    main()
