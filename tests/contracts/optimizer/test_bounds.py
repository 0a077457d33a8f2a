"""What settings must keep, and several goals with a pruner, over plain Optuna."""

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from prometar.errors import UserError
from tests.support.databases import remembered
from tests.unit.optimizer.test_ask_tell import memory, result, run_all, states
from tune.optimizer.ask_tell import Memory
from tune.results.goals import parse_bounds
from tune.results.schema import by_score

SPACE = "augment.jitter: {type: float, low: 0.0, high: 1.0}"
REFERENCE = {"augment.jitter": 0.5}
TRIALS = 30


def search(folder: Path, sampler: str, *, trials: int = TRIALS, **changes: Any) -> Memory:
    """The objective rises with the setting, and base accuracy falls."""
    study = memory(
        folder, space=SPACE, reference=REFERENCE, sampler=sampler, storage=remembered(folder), **changes
    )
    while (asked := study.next(trials)) is not None:
        x = asked.settings["augment.jitter"]
        study.observe(asked.number, {"epoch": 1, "objective": 100 * x, "base": 100 - 100 * x, "new": 50.0,
                                     "seconds": 1.0, "finished": True})  # fmt: skip
    return study


@pytest.mark.parametrize(("sampler", "trials"), [("tpe", TRIALS), ("gp", 12)])
def test_a_search_comes_near_to_where_a_bound_is_broken(tmp_path: Path, sampler: str, trials: int) -> None:
    bounds = parse_bounds(["base=60"], [])
    found = search(tmp_path, sampler, trials=trials, bounds=bounds).ended()
    best = by_score(found, bounds)[0]
    assert best.base is not None
    assert 60 <= best.base < 62
    assert by_score(found)[0] != best, "the highest objective breaks the bound"


def test_tpe_draws_less_of_what_breaks_a_bound(tmp_path: Path) -> None:
    bounds = parse_bounds(["base=60"], [])
    free = search(tmp_path / "free", "tpe").ended()
    bound = search(tmp_path / "bound", "tpe", bounds=bounds).ended()
    assert len(by_score(bound, bounds)) > 1.5 * len(by_score(free, bounds))


def test_a_trial_that_has_used_up_its_time_is_stopped_and_the_reference_is_not(tmp_path: Path) -> None:
    study = memory(tmp_path, bounds=parse_bounds([], ["seconds=10"]))
    for seconds, stopped in ((11.0, False), (9.0, False), (11.0, True)):
        asked = study.next(3)
        assert asked is not None
        assert study.observe(asked.number, result(asked, 1, seconds=seconds)) == stopped
    assert states(study) == [TrialState.RUNNING, TrialState.RUNNING, TrialState.PRUNED]


def test_of_several_goals_what_lies_behind_in_all_is_stopped(tmp_path: Path) -> None:
    goals = ("base", "new")
    study = memory(tmp_path, goals=goals, pruner="hopeless")
    run_all(study, 10)
    behind, ahead = study.next(12), study.next(12)
    assert behind is not None
    assert ahead is not None
    for asked, base, new, stopped in ((behind, 1.0, 1.0, True), (ahead, 1.0, 99.0, False)):
        for epoch in (1, 2, 3):
            told = result(asked, epoch, base=base, new=new, finished=False)
            assert study.observe(asked.number, told) == (stopped and epoch == 3)
    assert states(study)[-2:] == [TrialState.PRUNED, TrialState.RUNNING]


def test_cma_es_knows_no_bounds(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--sampler cmaes knows no bounds"):
        search(tmp_path, "cmaes", bounds=parse_bounds(["base=60"], []))
