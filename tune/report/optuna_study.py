"""Optuna study rebuilt from records, for Optuna's own plots and importance."""

import html
from collections.abc import Sequence

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.config import GOALS, Goal
from tune.records.folder import Records
from tune.records.schema import TrialRecord
from tune.space.ranges import Choice, FloatRange, Range, Value

MIN_COMPLETED = 8
"""Completed trials below which importances are noise."""


def label(text: str) -> str:
    """Escape a text, because Plotly reads labels as HTML."""
    return html.escape(text, quote=False)


def _escaped(value: Value) -> Value:
    return label(value) if isinstance(value, str) else value


def rebuild(records: Records, goals: Sequence[Goal]) -> optuna.Study:
    """Build an in-memory study with the same trials. Trials that lack a goal are failed trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=[GOALS[goal] for goal in goals])
    study.add_trials(_trial(trial, records, goals) for trial in records.trials)
    return study


def _trial(trial: TrialRecord, records: Records, goals: Sequence[Goal]) -> FrozenTrial:
    ranges, values = records.search.space.ranges, [getattr(trial, goal) for goal in goals]
    fits = all(key in ranges and ranges[key].contains(value) for key, value in trial.settings.items())
    if not fits or trial.state == "FAIL" or None in values:
        return create_trial(state=TrialState.FAIL)
    return create_trial(
        state=TrialState[trial.state],
        values=values if trial.state == "COMPLETE" else None,
        params={label(key): _escaped(value) for key, value in trial.settings.items()},
        distributions={label(key): _distribution(ranges[key]) for key in trial.settings},
        intermediate_values=dict(trial.epochs),
    )


def _distribution(entry: Range) -> BaseDistribution:
    if isinstance(entry, Choice):
        return CategoricalDistribution([_escaped(choice) for choice in entry.choices])
    if isinstance(entry, FloatRange):
        return FloatDistribution(entry.low, entry.high, log=entry.log)
    return IntDistribution(entry.low, entry.high, log=entry.log)


def evaluator() -> PedAnovaImportanceEvaluator:
    """Evaluator that compares the best quarter of the trials with all of them."""
    return PedAnovaImportanceEvaluator(target_quantile=0.25)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the importances of settings for a single goal, highest first. Empty with too few trials."""
    completed = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(completed) < MIN_COMPLETED or len({trial.value for trial in completed}) == 1:
        return {}
    return get_param_importances(study, evaluator=evaluator())
