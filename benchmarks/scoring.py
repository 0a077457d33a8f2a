"""Figures of settings on data sets, and how well ways of scoring them tell what they test."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import WORSE, table
from numpy.typing import NDArray
from scipy.stats import spearmanr

from prometar.metrics import harmonic_mean
from prometar.training.drift import LOSS_PER_NAT
from tune.stages.choice import Belief, Calibration

Floats = NDArray[np.float64]
BUDGET = 24  # settings that a search sees
RESAMPLED = 400


@dataclass(frozen=True)
class Table:
    """One data set's figures: settings x seeds, released settings first.

    Args:
        dataset: Its name. tests: H on the test images. base, new: Accuracy on them.
        signals: By name, what a search could see.
        holdout: By way of holding base classes out, H over seen and held-out ones, of the first seed.
    """

    dataset: str
    tests: Floats
    base: Floats
    new: Floats
    signals: Mapping[str, Floats]
    holdout: Mapping[str, Floats]

    @property
    def gains(self) -> Floats:
        """Draws x seeds: what each tests above the released settings."""
        return over_released(self.tests)


def over_released(scores: Floats) -> Floats:
    """Draws x seeds: how far each is above the released settings, which come first."""
    return (scores - scores[0])[1:]


@dataclass(frozen=True)
class Evidence:
    """What was measured: on which machine, of which settings, and each data set's figures."""

    machine: str
    space: str
    settings: int
    seeds: tuple[int, ...]
    epochs: int
    tables: tuple[Table, ...]

    def to_json(self) -> str:
        """Text; figures with six digits."""
        fields = {**vars(self), "tables": [vars(t) for t in self.tables]}
        return json.dumps(fields, default=lambda values: np.round(values, 6).tolist()) + "\n"

    @staticmethod
    def read(path: Path) -> Evidence:
        found = json.loads(path.read_text("utf-8"))
        return Evidence(
            **found | {"seeds": tuple(found["seeds"]), "tables": tuple(map(_table, found["tables"]))}
        )


def _table(found: dict[str, Any]) -> Table:
    arrays = {name: np.array(found[name]) for name in ("tests", "base", "new")}
    mappings = {
        name: {key: np.array(values) for key, values in found[name].items()}
        for name in ("signals", "holdout")
    }
    return Table(found["dataset"], **arrays, **mappings)


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
    "accuracy on other data sets": lambda t: _both(
        t.signals["base"], t.signals["zero_shot"] * t.signals["elsewhere"] / t.signals["elsewhere zero_shot"]
    ),
}
HELD_OUT: dict[str, Callable[[Table], Floats]] = {
    "one half held out": lambda t: t.holdout["half 0"],
    "both halves held out": lambda t: _mean_of(t, "half"),
    "one quarter held out": lambda t: t.holdout["quarter 0"],
    "quarters in turn": lambda t: _mean_of(t, "quarter"),
    "quarters in turn, among as many names": lambda t: _mean_of(t, "matched quarter"),
}
TEST: dict[str, Callable[[Table], Floats]] = {"the test itself, another seed": lambda t: t.tests}


def _mean_of(t: Table, kind: str) -> Floats:
    means: Floats = np.mean([t.holdout[way] for way in t.holdout if way.startswith(f"{kind} ")], axis=0)
    return means


def judge(scores: Floats, tests: Floats, seed: int) -> dict[str, float]:
    """How the scores of one seed rank by the tests of the others."""
    score, test = np.nan_to_num(scores[:, seed], nan=-1e9), _others(tests, seed)
    good = test >= np.median(test)
    picks = _picks(score, test)
    return {
        "rank": float(spearmanr(score, test).statistic),
        "rank of good": float(spearmanr(score[good], test[good]).statistic),
        "gain": float(np.mean(picks - test[0])),
        "worse": float(np.mean(picks < test[0] + WORSE)),
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
    found = [
        judge(scores, t.tests, seed) for t in tables for scores in [way(t)] for seed in range(scores.shape[1])
    ]
    return {key: float(np.nanmean([each[key] for each in found])) for key in found[0]}


def error_of(way: Callable[[Table], Floats], tables: Sequence[Table]) -> float:
    """Standard error of the mean rank correlation: sets and settings drawn again."""
    rng, means = np.random.default_rng(1), []
    for _ in range(100):
        ranks = []
        for k in rng.integers(len(tables), size=len(tables)):
            scores, tests = way(tables[k]), tables[k].tests
            rows = rng.integers(len(tests), size=len(tests))
            for seed in range(scores.shape[1]):
                others = _others(tests, seed)[rows]
                ranks.append(spearmanr(np.nan_to_num(scores[rows, seed], nan=-1e9), others).statistic)
        means.append(np.nanmean(ranks))
    return float(np.std(means))


def calibration(way: Callable[[Table], Floats], tables: Sequence[Table]) -> tuple[Calibration, Belief]:
    """How a setting's lead goes with its gain, and how the gains of random draws are spread.

    Of all settings, not of the best-scored alone: what made those the best is in their scores already.
    Variances and covariances are of different seeds, so that the noise of one is not in them.
    """
    lead = np.concatenate([over_released(way(t)) for t in tables])
    gain = np.concatenate([t.gains for t in tables])
    variance = _covariance(gain, gain)
    slope = _covariance(lead, gain) / variance
    spread = max(_covariance(lead, lead) - slope**2 * variance, 0.0)
    noise = lead.var(axis=1, ddof=1).mean()
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


def results(tables: Sequence[Table]) -> str:
    """How well each way of scoring ranks; of held-out classes where all have been scored on some."""
    rows = []
    for name, way in (WAYS | (HELD_OUT if all(t.holdout for t in tables) else {}) | TEST).items():
        s = summary(way, tables)
        error = error_of(way, tables)
        rows.append(
            (name, f"{s['rank']:.2f} ± {error:.2f}", f"{s['rank of good']:.2f}", f"{s['gain']:+.2f}",
             f"{100 * s['worse']:.0f} %", f"{s['regret']:.2f}")
        )  # fmt: skip
    columns = ("rank correlation", "among the better half", "pick - released", "worse", "regret")
    return table(("way of scoring", *columns), rows)


def parts(tables: Sequence[Table]) -> str:
    """How well base and new accuracy, each alone, are told on each data set."""
    told: dict[str, Callable[[Table], tuple[Floats, Floats]]] = {
        "base, by validation accuracy": lambda t: (t.signals["base"], t.base),
        "new, by divergence": lambda t: (-t.signals["divergence"], t.new),
        "new, by divergence on ImageNet's names": lambda t: (-t.signals["imagenet divergence"], t.new),
        "new, by agreement": lambda t: (t.signals["agreement"], t.new),
        "new, by text cosine": lambda t: (t.signals["text_cosine"], t.new),
        "new, by image cosine": lambda t: (t.signals["image_cosine"], t.new),
        "new, by accuracy on other data sets": lambda t: (t.signals["elsewhere"], t.new),
        "new, by the test with another seed": lambda t: (t.new, t.new),
    }
    rows = []
    for name, of in told.items():
        ranks = [np.mean([judge(*of(t), seed)["rank"] for seed in range(t.new.shape[1])]) for t in tables]
        rows.append((name, *(f"{rank:.2f}" for rank in ranks)))
    return table(("rank correlation", *(t.dataset for t in tables)), rows)
