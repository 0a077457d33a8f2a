"""Optuna study rebuilt from records, for Optuna's own plots and importance."""

import html
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune.config import GOALS
from tune.records.folder import Records
from tune.records.schema import TrialRecord
from tune.space.ranges import Choice, FloatRange, Range

MIN_COMPLETED = 8
"""Completed trials below which importances are noise."""


def label(text: Any) -> Any:
    """Escape a text, because Plotly reads labels as HTML. Other values stay."""
    return html.escape(text, quote=False) if isinstance(text, str) else text


def rebuild(records: Records) -> optuna.Study:
    """Build an in-memory study with the same trials. Trials without all goals are failed trials."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=[GOALS[goal] for goal in records.search.goals])
    numbers = {trial.number: trial for trial in records.trials}
    study.add_trials(_trial(numbers.get(number), records) for number in range(max(numbers, default=-1) + 1))
    return study


def _trial(trial: TrialRecord | None, records: Records) -> FrozenTrial:
    ranges, goals = records.search.space.ranges, records.search.goals
    found = [getattr(trial, goal) for goal in goals] if trial else []
    values = [value for value in found if value is not None]
    fits = trial and all(key in ranges and ranges[key].contains(x) for key, x in trial.settings.items())
    if not trial or not fits or trial.state == "FAIL" or len(values) < len(goals):
        return create_trial(state=TrialState.FAIL)
    return create_trial(
        state=TrialState[trial.state],
        values=values if trial.state == "COMPLETE" else None,
        params={label(key): label(value) for key, value in trial.settings.items()},
        distributions={label(key): _distribution(ranges[key]) for key in trial.settings},
        intermediate_values={each.epoch: each.objective for each in trial.epochs},
    )


def _distribution(entry: Range) -> BaseDistribution:
    if isinstance(entry, Choice):
        return CategoricalDistribution([label(choice) for choice in entry.choices])
    if isinstance(entry, FloatRange):
        return FloatDistribution(entry.low, entry.high, log=entry.log)
    return IntDistribution(entry.low, entry.high, log=entry.log)


def first_goal(trial: FrozenTrial) -> float:
    """Value of the first goal."""
    return float(trial.values[0])


def evaluator() -> PedAnovaImportanceEvaluator:
    """Evaluator that compares the best quarter of the trials with all of them."""
    return PedAnovaImportanceEvaluator(target_quantile=0.25)


def importance_target(study: optuna.Study) -> Callable[[FrozenTrial], float] | None:
    """Figure that the evaluator explains with several goals. It looks for low values."""
    if len(study.directions) == 1:
        return None
    sign = -1 if study.directions[0] is StudyDirection.MAXIMIZE else 1
    return lambda trial: sign * first_goal(trial)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return the importances of settings, highest first. Empty with too few trials."""
    completed = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(completed) < MIN_COMPLETED or len(set(map(first_goal, completed))) == 1:
        return {}
    return get_param_importances(study, evaluator=evaluator(), target=importance_target(study))
