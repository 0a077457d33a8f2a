"""How much each setting matters, from trial records."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tune.results.schema import TrialRecord
from tune.space.spaces import Choice, Range

MIN_COMPLETE = 8  # finished trials, below which importances are noise
TOP = 0.25  # share of the finished trials that counts as good; the paper's 0.1 is one trial of ten
_ROUNDING = 1e-6  # scores that differ by less are equal
_CELLS = 50  # of a range of numbers
_NARROWEST = 0.3  # of a cell: the standard deviation of a trial's kernel

Density = NDArray[np.float64]


@dataclass(frozen=True)
class Importances:
    """Shares that sum to 1, or are all 0 where nothing can be told; the settings that had to be left out."""

    shares: Mapping[str, float]
    left_out: tuple[str, ...] = ()
    num_trials: int = 0

    @property
    def ranked(self) -> list[str]:
        """Settings that have a share, the most important first."""
        return sorted((k for k, share in self.shares.items() if share), key=lambda k: -self.shares[k])


def importances(trials: Sequence[TrialRecord], ranges: Mapping[str, Range]) -> Importances:
    r"""Importance of each setting by PED-ANOVA.

    How far the settings of the best quarter of the finished trials are from those of all finished trials:
    :math:`\frac{\alpha^2}{\beta} \sum_x p(x) (p_{top}(x) / p(x) - 1)^2`, over the trials that have the
    setting, which are a share :math:`\alpha` of the best and :math:`\beta` of all.

    Pruned trials are no part of it: their figures are of fewer epochs. Nor are trials with a value outside
    the range searched (put in by hand), nor settings that fewer than `MIN_COMPLETE` trials have (they are
    drawn under a condition).

    Source: Watanabe et al., PED-ANOVA, IJCAI 2023; with conditions as in `optuna.importance`.
    """
    inside = [t for t in trials if t.score is not None and _inside(t, ranges)]
    if len(inside) < MIN_COMPLETE:
        return Importances(dict.fromkeys(ranges, 0.0), (), len(inside))
    scores = sorted((t.objective or 0.0 for t in inside), reverse=True)
    least = scores[math.ceil(TOP * len(inside)) - 1]
    least -= _ROUNDING * abs(least)
    good = [t for t in inside if t.objective is not None and t.objective >= least]
    raw: dict[str, float] = {}
    for key, entry in ranges.items():
        having, top = ([t for t in group if key in t.settings] for group in (inside, good))
        if len(having) >= MIN_COMPLETE:
            share = (len(top) / len(good)) ** 2 / (len(having) / len(inside))
            raw[key] = share * _divergence(top, having, key, entry) if top else 0.0
    total = sum(raw.values())
    shares = {key: value / total if total else 0.0 for key, value in raw.items()}
    return Importances(shares, tuple(key for key in ranges if key not in raw), len(inside))


def _inside(trial: TrialRecord, ranges: Mapping[str, Range]) -> bool:
    return all(entry.holds(trial.settings[key]) for key, entry in ranges.items() if key in trial.settings)


def _divergence(top: Sequence[TrialRecord], having: Sequence[TrialRecord], key: str, entry: Range) -> float:
    """Pearson's, of the best trials' values from those of all; 0 where all trials are the best."""
    if len(top) == len(having):
        return 0.0
    p_top, p = (_density([t.settings[key] for t in group], entry) for group in (top, having))
    return float(p @ (p_top / p - 1) ** 2)


def _density(values: Sequence[object], entry: Range) -> Density:
    """How often each choice, or each cell of the range, is drawn: with a few more draws that are uniform.

    One of a range, two of each choice: then choices are found where they matter, and where nothing does, they
    come first about as often as ranges do.
    """
    if isinstance(entry, Choice):
        counts = np.array([sum(value == choice for value in values) for choice in entry.choices], float)
        return (counts + 2) / (len(values) + 2 * counts.size)
    places = np.array([entry.unit(value) for value in values])
    cells = np.arange(min(_CELLS, entry.high - entry.low + 1) if isinstance(entry.low, int) else _CELLS)
    cells = cells / (cells.size - 1)
    lower, upper = np.quantile(places, [0.25, 0.75])
    # Scott's rule, with a spread that single trials far away do not widen.
    width = 1.059 * min(places.std(ddof=1) if places.size > 1 else 0.0, (upper - lower) / 1.34)
    width = max(width * places.size**-0.2, _NARROWEST * cells[1])
    kernels = np.exp(-0.5 * ((cells[:, None] - places) / width) ** 2)
    return ((kernels / kernels.sum(0)).sum(1) + 1 / cells.size) / (places.size + 1)
