"""How much each setting matters, from trial records; Optuna judges."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator
from optuna.trial import FrozenTrial, TrialState, create_trial

MIN_COMPLETE = 8  # finished trials, below which importances are noise
TOP = 0.25  # share of the finished trials that counts as good; PED-ANOVA's usual 0.1 is one trial of ten


@dataclass(frozen=True)
class Importances:
    """Shares that sum to 1, or are all 0 where nothing can be told; the settings that had to be left out."""

    shares: dict[str, float]
    left_out: tuple[str, ...] = field(default=())
    num_trials: int = 0

    @property
    def known(self) -> bool:
        return any(self.shares.values())

    @property
    def ranked(self) -> list[str]:
        """Settings that have a share, the most important first."""
        return sorted((k for k, share in self.shares.items() if share), key=lambda k: -self.shares[k])


def importances(trials: Sequence[Mapping[str, Any]], ranges: Mapping[str, Mapping[str, Any]]) -> Importances:
    """Importance of each setting by PED-ANOVA.

    How far the settings of the best quarter of the finished trials are from those of all finished trials.
    Pruned trials are no part of it: their figures are of fewer epochs. Nor are settings that some finished
    trials lack (they are drawn under a condition), nor trials with a value outside the range searched
    (put in by hand).
    Source: Watanabe et al., PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary
    Subspaces, IJCAI 2023; as `optuna.importance.PedAnovaImportanceEvaluator`.
    """
    complete = [t for t in trials if t["state"] == "COMPLETE" and t["objective"] is not None]
    whole = [key for key in ranges if all(key in t["settings"] for t in complete)]
    left_out = tuple(key for key in ranges if key not in whole)
    distributions = {key: _distribution(ranges[key]) for key in whole}
    inside = [t for t in complete if _inside(t["settings"], ranges)]
    shares = dict.fromkeys(whole, 0.0)
    if len(inside) < MIN_COMPLETE:
        return Importances(shares, left_out, len(inside))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that importances are equal where trials are; so do we
        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        study = optuna.create_study(direction="maximize")
        study.add_trials([_frozen(trial, distributions) for trial in inside])
        raw = PedAnovaImportanceEvaluator(target_quantile=TOP).evaluate(study)
        optuna.logging.set_verbosity(verbosity)
    total = sum(raw.values())
    shares |= {key: float(raw.get(key, 0.0) / total) if total else 0.0 for key in whole}
    return Importances(shares, left_out, len(inside))


def _inside(settings: Mapping[str, Any], ranges: Mapping[str, Mapping[str, Any]]) -> bool:
    return all(
        settings[key] in entry["choices"]
        if entry["type"] == "choice"
        else entry["low"] <= settings[key] <= entry["high"]
        for key, entry in ranges.items()
        if key in settings
    )


def _distribution(entry: Mapping[str, Any]) -> BaseDistribution:
    if entry["type"] == "choice":
        return CategoricalDistribution(tuple(entry["choices"]))
    kind = FloatDistribution if entry["type"] == "float" else IntDistribution
    return kind(entry["low"], entry["high"], log=bool(entry.get("log")))


def _frozen(trial: Mapping[str, Any], distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE,
        value=trial["objective"],
        params={key: trial["settings"][key] for key in distributions},
        distributions=dict(distributions),
    )
