"""Figures of settings on data sets, and how well ways of scoring them tell what they test."""

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
BUDGETS = (6, 12, 24)  # settings that a search sees
BUDGET = BUDGETS[-1]
RESAMPLED = 400


@dataclass(frozen=True)
class Table:
    """One data set's figures: settings x seeds, released settings first.

    Args:
        dataset: Its name. tests: H on the test images. base, new: Accuracy on them.
        signals: By name, what a search could see.
    """

    dataset: str
    tests: Floats
    base: Floats
    new: Floats
    signals: Mapping[str, Floats]

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
    def read(path: Path) -> "Evidence":
        found = json.loads(path.read_text("utf-8"))
        return Evidence(
            **found | {"seeds": tuple(found["seeds"]), "tables": tuple(map(_table, found["tables"]))}
        )


def _table(found: dict[str, Any]) -> Table:
    tests, base, new = (np.array(found[name]) for name in ("tests", "base", "new"))
    signals = {key: np.array(values) for key, values in found["signals"].items()}
    return Table(found["dataset"], tests, base, new, signals)


def _both(base: Floats, new: Floats) -> Floats:
    return np.vectorize(lambda b, n: harmonic_mean({"base": b, "new": n}))(base, new)


def _drift(t: Table, divergence: str, loss: float) -> Floats:
    return _both(t.signals["base"], t.signals["zero_shot"] * np.exp(-loss * t.signals[divergence]))


Way = Callable[[Table], Floats]
"""Scores, settings x seeds."""
DRIFT = f"drift, {LOSS_PER_NAT} a nat"
WAYS: dict[str, Way] = {
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
TEST: dict[str, Way] = {"the test itself, another seed": lambda t: t.tests}


def scores_of(way: Way, t: Table) -> Floats:
    """Scores, settings x seeds; of what failed, lower than all."""
    return _failed_last(way(t))


def _failed_last(scores: Floats) -> Floats:
    return np.nan_to_num(scores, nan=-1e9)


def judge(scores: Floats, tests: Floats, seed: int) -> dict[str, float]:
    """How the scores of one seed rank by the tests of the others, and what picks of each budget gain."""
    score, test = scores[:, seed], _others(tests, seed)
    good = test >= np.median(test)
    gains = {budget: test[_picked(score, budget)] - test[0] for budget in BUDGETS}
    return {
        "rank": float(spearmanr(score, test).statistic),
        "rank of good": float(spearmanr(score[good], test[good]).statistic),
        **{f"gain of {budget}": float(gain.mean()) for budget, gain in gains.items()},
        "worse": float(np.mean(gains[BUDGET] < WORSE)),
        "regret": float(test.max() - test[0] - gains[BUDGET].mean()),
    }


def _others(tests: Floats, seed: int) -> Floats:
    """What the other seeds test, their mean; of a single seed, its own."""
    others = [k for k in range(tests.shape[1]) if k != seed] or [seed]
    means: Floats = tests[:, others].mean(axis=1)
    return means


def _picked(score: Floats, budget: int) -> NDArray[np.intp]:
    """The best-scored of `budget` settings, drawn time and again, the released ones always among them."""
    rng, size = np.random.default_rng(0), min(budget, len(score))
    drawn = [np.r_[0, 1 + rng.permutation(len(score) - 1)[: size - 1]] for _ in range(RESAMPLED)]
    return np.array([rows[np.argmax(score[rows])] for rows in drawn])


def over_sets(way: Way, tables: Sequence[Table]) -> float:
    """Rank correlation of leads over the released settings with gains, settings of all sets together."""
    leads = np.concatenate([over_released(scores_of(way, t)) for t in tables])
    gains = np.concatenate([t.gains for t in tables])
    return float(
        np.mean([spearmanr(lead, _others(gains, seed)).statistic for seed, lead in enumerate(leads.T)])
    )


def share_picked(way: Way, tables: Sequence[Table], which: NDArray[np.bool_]) -> float:
    """How many of the picks are settings of a kind, over sets and seeds."""
    picks = [_picked(score, BUDGET) for t in tables for score in scores_of(way, t).T]
    return float(np.mean(which[picks]))


def summary(way: Way, tables: Sequence[Table]) -> dict[str, float]:
    """Means over sets and seeds."""
    found = [
        judge(scores, t.tests, seed)
        for t in tables
        for scores in [scores_of(way, t)]
        for seed in range(scores.shape[1])
    ]
    return {key: float(np.nanmean([each[key] for each in found])) for key in found[0]}


def error_of(way: Way, tables: Sequence[Table]) -> float:
    """Standard error of the mean rank correlation: sets and settings drawn again."""
    rng, means = np.random.default_rng(1), []
    for _ in range(100):
        ranks = []
        for k in rng.integers(len(tables), size=len(tables)):
            scores, tests = scores_of(way, tables[k]), tables[k].tests
            rows = rng.integers(len(tests), size=len(tests))
            for seed in range(scores.shape[1]):
                others = _others(tests, seed)[rows]
                ranks.append(spearmanr(scores[rows, seed], others).statistic)
        means.append(np.nanmean(ranks))
    return float(np.std(means))


def calibration(way: Way, tables: Sequence[Table]) -> tuple[Calibration, Belief]:
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


def results(tables: Sequence[Table], free: NDArray[np.bool_]) -> str:
    """How well each way of scoring ranks.

    `free`: Which settings have no regularizer.
    """
    rows = []
    for name, way in (WAYS | TEST).items():
        s = summary(way, tables)
        within = f"{s['rank']:.2f} ± {error_of(way, tables):.2f}"
        ranks = (within, *(f"{rank:.2f}" for rank in (over_sets(way, tables), s["rank of good"])))
        gains = (f"{s[f'gain of {budget}']:+.2f}" for budget in BUDGETS)
        worse, unregularized = (f"{100 * x:.0f} %" for x in (s["worse"], share_picked(way, tables, free)))
        rows.append((name, *ranks, *gains, worse, f"{s['regret']:.2f}", unregularized))
    picks = [f"pick of {budget}" for budget in BUDGETS]
    ranks = ("rank correlation", "over sets", "among the better half")
    return table(("way of scoring", *ranks, *picks, "worse", "regret", "no regularizer"), rows)


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
        pairs = [(_failed_last(scores), tests) for scores, tests in map(of, tables)]
        ranks = [np.mean([judge(*pair, k)["rank"] for k in range(pair[1].shape[1])]) for pair in pairs]
        rows.append((name, *(f"{rank:.2f}" for rank in ranks)))
    return table(("rank correlation", *(t.dataset for t in tables)), rows)
