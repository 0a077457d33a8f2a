"""The study's memory when its driver dies between any two lines, without Ray."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from prometar.errors import WorkError
from tests.support.driver import small_spec
from tune.optimizer.ask_tell import HOPELESS, Asked, Memory
from tune.optimizer.samplers import STARTUP_TRIALS
from tune.optimizer.storage import drive_study, reachable
from tune.optimizer.trial_counts import REPEAT
from tune.space.spaces import parse_space
from tune.study_spec import StudySpec

SPEC = small_spec()


def memory(folder: Path, spec: StudySpec = SPEC) -> Memory:
    storage = f"sqlite:///{folder / 'study.db'}"
    return Memory(storage, "s", spec, reference=spec.reference())


def ask(study: Memory) -> Asked:
    asked = study.next(100)
    assert asked is not None
    return asked


def finish(study: Memory, asked: Asked, value: float = 50.0) -> None:
    study.observe(asked.number, {"epoch": 1, "objective": value, "finished": True})


def test_killed_after_the_study_was_created(tmp_path: Path) -> None:
    drive_study(f"sqlite:///{tmp_path / 'study.db'}", "s")
    assert ask(memory(tmp_path)) == Asked(0, SPEC.reference())
    assert len(memory(tmp_path).trials()) == 1


@pytest.mark.parametrize("num_ended", [0, 1, STARTUP_TRIALS + 1])
def test_killed_in_the_middle_of_a_draw(tmp_path: Path, num_ended: int) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    study = memory(whole)
    for k in range(num_ended):
        finish(study, ask(study), 50.0 + k)
    for num_drawn in range(len(SPEC.space.ranges)):
        dead = tmp_path / f"dead-{num_drawn}"
        shutil.copytree(whole, dead)
        trial = memory(dead)._ask()
        keys = list(SPEC.space.ranges)[:num_drawn]
        drawn = {key: SPEC.space.ranges[key].draw(key, trial) for key in keys}
        asked = ask(memory(dead))
        assert asked.number == num_ended
        assert {key: asked.settings[key] for key in keys} == drawn
        if num_ended != 1:  # a random draw's rest is drawn anew; the model's, or the reference's, is the same
            assert asked == ask(memory(shutil.copytree(whole, tmp_path / f"alive-{num_drawn}")))


def test_killed_before_a_repeat_was_set_aside(tmp_path: Path) -> None:
    study = memory(tmp_path)
    finish(study, ask(study))
    study._study.enqueue_trial(SPEC.reference())
    SPEC.space.draw(study._study.ask())
    again = memory(tmp_path)
    assert again.num_interrupted == 1
    asked = ask(again)
    assert asked.settings != SPEC.reference()
    assert asked.number == 2
    assert [t.number for t in again.trials()] == [0, 2]
    assert again._study.trials[1].user_attrs[REPEAT] == 0


def test_a_small_space_is_searched_through_and_then_ends(tmp_path: Path) -> None:
    space = parse_space("tiny", "regularizer.kind: {type: choice, choices: [l1, l2, cosine, none]}")
    study = memory(tmp_path, small_spec(space=space))
    kinds = []
    while (asked := study.next(30)) is not None:
        kinds.append(asked.settings["regularizer.kind"])
        finish(study, asked)
    assert sorted(kinds) == ["cosine", "l1", "l2", "none"]
    assert Counter(t.state for t in study.trials()) == {TrialState.COMPLETE: 4}


def test_a_study_that_lost_hope_goes_on_when_the_cause_is_mended(tmp_path: Path) -> None:
    study = memory(tmp_path)
    for _ in range(HOPELESS):
        assert study.hopeless() is None
        study.fail(ask(study).number, "no space left on the device")
    assert study.next(100) is None
    mended = memory(tmp_path)
    assert mended.hopeless() is None
    finish(mended, ask(mended))


def test_one_finished_trial_is_hope(tmp_path: Path) -> None:
    study = memory(tmp_path)
    finish(study, ask(study))
    for _ in range(HOPELESS + 1):
        study.fail(ask(study).number, "bad luck")
    assert study.hopeless() is None


def test_a_storage_lost_on_the_way_is_one_line() -> None:
    lost = OperationalError("UPDATE trials", {}, Exception("database is locked"))
    with (
        pytest.raises(WorkError, match=r"storage x failed: .*locked") as caught,
        reachable("x"),
    ):
        raise lost
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("the same command goes on from here")
