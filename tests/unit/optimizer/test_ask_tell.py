"""The study's memory over plain Optuna: no Ray, no training, no time."""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from prometar.errors import StorageError, UserError, WorkError
from tests.support.databases import new_database, open_study
from tune.optimizer import ask_tell
from tune.optimizer.ask_tell import Asked, Memory
from tune.optimizer.choices import Search
from tune.optimizer.samplers import STARTUP_TRIALS
from tune.optimizer.storage import drive_study
from tune.space.spaces import parse_space

REFERENCE = {"regularizer.text_weight": 50.0, "augment.jitter": 0.0}
EPOCHS = 3
SPACE = """
regularizer.text_weight: {type: float, low: 1.0, high: 100.0, log: true}
augment.jitter: {type: float, low: 0.0, high: 0.5}
"""


def objective(settings: dict[str, Any], epoch: int) -> float:
    """Best at text_weight 10 and jitter 0; grows with the epochs."""
    return 60.0 + epoch - abs(settings["regularizer.text_weight"] - 10) / 10 - 10 * settings["augment.jitter"]


def memory(
    folder: Path,
    *,
    space: str = SPACE,
    reference: dict[str, Any] = REFERENCE,
    storage: Any = None,
    admit: Callable[[Memory], None] = lambda memory: None,
    **changes: Any,
) -> Memory:
    search = Search(space=parse_space("test", space), seed=3, **{"pruner": "none", **changes})
    return Memory(storage or new_database(folder), "s", search, reference=reference, admit=admit)


def result(asked: Asked, epoch: int, **changes: Any) -> dict[str, Any]:
    value = objective(asked.settings, epoch)
    return {
        "epoch": epoch,
        "objective": value,
        "base": value,
        "new": value,
        "finished": epoch == EPOCHS,
        **changes,
    }


def run(study: Memory, asked: Asked) -> None:
    for epoch in range(1, EPOCHS + 1):
        if study.observe(asked.number, result(asked, epoch)):
            return


def run_all(study: Memory, target: int) -> list[Asked]:
    asked = []
    while (one := study.next(target)) is not None:
        run(study, one)
        asked.append(one)
    return asked


def states(study: Memory) -> list[TrialState]:
    return [t.state for t in study.trials()]


def test_the_reference_is_trial_0_and_the_target_holds(tmp_path: Path) -> None:
    study = memory(tmp_path)
    asked = run_all(study, 5)
    assert [a.number for a in asked] == [0, 1, 2, 3, 4]
    assert asked[0].settings == REFERENCE
    assert states(study) == [TrialState.COMPLETE] * 5
    best = study.best()
    assert best is not None
    assert best.score == max(objective(a.settings, EPOCHS) for a in asked)


def test_a_restarted_study_draws_what_an_undisturbed_one_draws(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run_all(memory(tmp_path / "a"), 12)
    parts = [asked for target in (3, 4, 9, 12) for asked in run_all(memory(tmp_path / "b"), target)]
    assert parts == whole
    assert len({tuple(a.settings.values()) for a in whole}) == 12


def test_draws_are_those_of_optunas_own_sampler(tmp_path: Path) -> None:
    study = memory(tmp_path)
    run_all(study, 12)
    draw = study.next(13)
    assert draw is not None
    seed = int(np.random.SeedSequence([3, 12]).generate_state(1)[0])
    plain = optuna.create_study(
        direction="maximize",
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS),
    )
    plain.add_trials(study.trials()[:12])
    trial = plain.ask()
    assert draw.settings == parse_space("test", SPACE).draw(trial)


def test_no_trial_looks_through_all_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = memory(tmp_path)

    def looks(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("this takes longer with every trial")

    monkeypatch.setattr(study._study, "get_trials", looks)
    assert len(run_all(study, 9)) == 9
    assert [t.number for t in study.ended(since=3)] == [3, 4, 5, 6, 7, 8]


def test_interrupted_trials_come_first_with_the_same_settings(tmp_path: Path) -> None:
    study = memory(tmp_path)
    first = [study.next(4), study.next(4), study.next(4)]
    assert all(first)
    run(study, first[1])  # type: ignore[arg-type]
    again = memory(tmp_path)
    assert again.num_interrupted == 2
    assert [again.next(4), again.next(4)] == [first[0], first[2]]
    fresh = again.next(4)
    assert fresh is not None
    assert fresh.number == 3
    assert again.next(4) is None


def test_a_repeated_epoch_is_taken_once(tmp_path: Path) -> None:
    study = memory(tmp_path)
    asked = study.next(1)
    assert asked is not None
    study.observe(asked.number, result(asked, 1))
    again = memory(tmp_path)
    same = again.next(1)
    assert same == asked
    assert not again.observe(asked.number, result(asked, 1, objective=0.0))
    run(again, asked)
    (trial,) = again.trials()
    assert trial.state is TrialState.COMPLETE
    assert trial.intermediate_values == {e: objective(REFERENCE, e) for e in (1, 2, 3)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"objective": float("nan")}, "the objective is nan in epoch 1"),
        ({"failed": "the loss is nan at step 3"}, "the loss is nan at step 3"),
    ],
)
def test_a_failed_result_ends_the_trial_with_its_reason(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    study = memory(tmp_path)
    asked = study.next(3)
    assert asked is not None
    assert study.observe(asked.number, result(asked, 1, **changes))
    (trial, *_) = study.trials()
    assert (trial.state, trial.user_attrs["reason"]) == (TrialState.FAIL, reason)
    assert study.next(3) is not None


def test_a_missing_metric_fails_the_trial(tmp_path: Path) -> None:
    study = memory(tmp_path)
    asked = study.next(1)
    assert asked is not None
    assert study.observe(asked.number, {"epoch": 1, "finished": False})
    assert study.trials()[0].user_attrs["reason"] == "the trial reported no objective"


def test_the_pruner_stops_a_poor_trial_but_never_the_reference(tmp_path: Path) -> None:
    space = "regularizer.text_weight: {type: float, low: 1.0, high: 100.0}"
    study = memory(tmp_path, space=space, reference={"regularizer.text_weight": 50.0}, pruner="median")
    values = [0.0, *[10.0] * 8, 1.0]  # the reference and the last are the poorest
    ends = []
    for value in values:
        asked = study.next(len(values))
        assert asked is not None
        for epoch in range(1, EPOCHS + 1):
            stop = study.observe(
                asked.number, {"epoch": epoch, "objective": value, "finished": epoch == EPOCHS}
            )
            if stop:
                break
        ends.append(epoch)
    assert ends == [*[3] * 9, 2]
    assert states(study)[0] is TrialState.COMPLETE
    assert states(study)[-1] is TrialState.PRUNED
    assert study.trials()[-1].intermediate_values == {1: 1.0, 2: 1.0}


def test_settings_that_were_tried_are_not_tried_again(tmp_path: Path) -> None:
    space = "task.augmentation: {type: choice, choices: [none, feature_mixup]}"
    study = memory(tmp_path, space=space, reference={"task.augmentation": "feature_mixup"})
    seen = []
    while (asked := study.next(10)) is not None:
        seen.append(asked.settings["task.augmentation"])
        study.observe(asked.number, {"epoch": 1, "objective": 1.0, "finished": True})
    assert sorted(seen) == ["feature_mixup", "none"]


def test_a_study_without_hope_stops_and_says_why(tmp_path: Path) -> None:
    study = memory(tmp_path)
    for _ in range(5):
        asked = study.next(100)
        assert asked is not None
        study.fail(asked.number, "no such file: x.jpg")
    assert study.next(100) is None
    assert study.hopeless() == "no such file: x.jpg"


def test_what_has_failed_is_not_drawn_again(tmp_path: Path) -> None:
    space = "task.augmentation: {type: choice, choices: [none, feature_mixup, input_mixup]}"
    seen = []
    for _ in range(2):  # nor by the next command
        study = memory(tmp_path, space=space, reference={"task.augmentation": "none"})
        while (asked := study.next(10)) is not None:
            seen.append(asked.settings["task.augmentation"])
            failed = {"failed": "diverged"} if seen[-1] == "feature_mixup" else {}
            study.observe(asked.number, {"epoch": 1, "objective": 1.0, "finished": True, **failed})
        study.close()
    assert sorted(seen) == ["feature_mixup", "input_mixup", "none"]


def test_a_model_that_loves_what_has_been_tried_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ask_tell, "REDRAWS", 5)  # each trial takes as many writes
    space = """
task.augmentation: {type: choice, choices: [none, feature_mixup]}
task.mixup_alpha: {type: float, low: 0.1, high: 1.0, when: {task.augmentation: feature_mixup}}
"""

    def study_of(folder: Path) -> Memory:
        return memory(folder, space=space, reference={"task.augmentation": "none"})

    def finish(study: Memory, asked: Asked) -> None:
        value = 90.0 if asked.settings["task.augmentation"] == "none" else 10.0
        study.observe(asked.number, {"epoch": 1, "objective": value, "finished": True})

    whole = study_of(tmp_path / "whole")
    while (asked := whole.next(16)) is not None:
        finish(whole, asked)
    assert not whole.exhausted
    assert len(whole.trials()) == 16
    parts: list[dict[str, Any]] = []
    for target in (6, *range(7, 17)):  # each by a driver of its own, which counts the repeats that it finds
        study = study_of(tmp_path / "parts")
        while (asked := study.next(target)) is not None:
            parts.append(asked.settings)
            finish(study, asked)
        study.close()
    assert parts == [trial.params for trial in whole.trials()]


def test_what_is_refused_has_written_nothing(tmp_path: Path) -> None:
    first = memory(tmp_path)
    asked = first.next(3)
    assert asked is not None
    first.fail(asked.number, "the worker died")  # so that the next driver would ask for it again
    first.claim({"seed": 3}, "here")

    def refuse(study: Memory) -> None:
        assert study.claim({"seed": 4}, "there") == ({"seed": 3}, "here")
        raise UserError("another's")

    with pytest.raises(UserError, match="another's"):
        memory(tmp_path, admit=refuse)
    assert len(open_study(f"sqlite:///{tmp_path}/study.db", "s").trials) == 1
    asked = first.next(3)
    assert asked is not None
    assert asked.number == 1


def test_a_second_writer_is_noticed(tmp_path: Path) -> None:
    first, second = memory(tmp_path), memory(tmp_path)
    assert first.next(9) is not None
    with pytest.raises(StorageError, match="trial 0 of the study has been begun: another process writes it"):
        second.next(9)
    third = memory(tmp_path)
    assert first.next(9) is not None
    with pytest.raises(StorageError, match="has a trial 1 already: another process writes it too"):
        [third.next(9), third.next(9)]


def test_a_draw_that_is_broken_off_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = memory(tmp_path)
    assert study.next(9) is not None
    with monkeypatch.context() as patch:
        patch.setattr("optuna.trial.Trial.suggest_float", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            study.next(9)
    study.close()
    left = open_study(f"sqlite:///{tmp_path}/study.db", "s").trials
    assert [trial.state.name for trial in left] == ["WAITING"]


def test_a_study_on_disk_is_a_plain_optuna_study(tmp_path: Path) -> None:
    run_all(memory(tmp_path), 3)
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{tmp_path}/study.db")
    assert len(study.trials) == 3
    assert study.direction == optuna.study.StudyDirection.MAXIMIZE


def test_errors_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(WorkError, match="cannot open the study storage sqlite:////no/such"):
        drive_study("sqlite:////no/such/folder/study.db", "x")
    for wrong in ("nonsense", "no_such_kind://host/db", "redis://host/db"):
        with pytest.raises(UserError, match=f"cannot open the study storage {wrong}: ") as refused:
            drive_study(wrong, "x")
        assert refused.value.exit_code == 2, "the URL is wrong, whatever the network does"
    with pytest.raises(UserError, match="unknown pruner 'best'"):
        memory(tmp_path, pruner="best")


def test_a_study_where_everything_failed_is_run_again(tmp_path: Path) -> None:
    study = memory(tmp_path)
    for _ in range(3):
        asked = study.next(3)
        assert asked is not None
        study.fail(asked.number, "broken image x.jpg")
    assert study.next(3) is None
    again = run_all(memory(tmp_path), 3)
    assert len(again) == 3
    assert again[0].settings == REFERENCE
    assert states(memory(tmp_path))[3:] == [TrialState.COMPLETE] * 3


def test_given_settings_that_failed_are_run_again_when_the_cause_is_mended(tmp_path: Path) -> None:
    mine = [{"regularizer.text_weight": float(weight), "augment.jitter": 0.1} for weight in (1, 2)]
    study = memory(tmp_path)
    study.enqueue(mine, "enqueued")
    for _ in range(3):
        asked = study.next(3)
        assert asked is not None
        study.fail(asked.number, "no weights")
    study.close()
    again = memory(tmp_path)
    assert len(again.forgiven) == 3
    assert again.enqueue(mine, "enqueued") == 2
    assert [asked.settings for asked in run_all(again, 3)] == [REFERENCE, *mine]
    assert memory(tmp_path).enqueue(mine, "enqueued") == 0, "once"


def test_a_failed_reference_is_run_again(tmp_path: Path) -> None:
    study = memory(tmp_path)
    first = study.next(3)
    assert first is not None
    study.fail(first.number, "the worker died")
    run_all(study, 3)
    assert memory(tmp_path).wants(1), "whatever else is asked for"
    again = run_all(memory(tmp_path), 3)
    assert [a.settings for a in again] == [REFERENCE]
    assert run_all(memory(tmp_path), 3) == []
    assert not memory(tmp_path).wants(1)


def test_a_failed_reference_brings_no_waiting_settings_along(tmp_path: Path) -> None:
    mine = [{"regularizer.text_weight": float(weight), "augment.jitter": 0.1} for weight in (1, 2, 3)]
    study = memory(tmp_path)
    study.enqueue(mine, "enqueued")
    first = study.next(2)
    assert first is not None
    study.fail(first.number, "the worker died")
    assert [asked.settings for asked in run_all(study, 2)] == mine[:1]
    study.close()
    again = memory(tmp_path)
    assert [asked.settings for asked in run_all(again, 2)] == [REFERENCE]
    assert again.num_waiting == 2
    again.close()
    assert [asked.settings for asked in run_all(memory(tmp_path), 5)] == mine[1:]


def test_a_kill_between_an_epoch_and_its_figures(tmp_path: Path) -> None:
    study = memory(tmp_path)
    asked = study.next(1)
    assert asked is not None
    study.observe(asked.number, result(asked, 1))
    study._running[asked.number].report(70.0, 3)  # killed before the figures of epoch 3 are stored
    again = memory(tmp_path)
    again.next(1)
    assert again.observe(asked.number, result(asked, 3, objective=70.0))
    (trial,) = again.trials()
    assert trial.value == trial.user_attrs["result"]["objective"] == 70.0


def test_passwords_are_hidden() -> None:
    with pytest.raises(UserError) as caught:
        drive_study("postgresql+nodriver://me:secret@localhost/db", "x")
    assert "secret" not in str(caught.value)


def test_enqueued_settings_count_towards_the_trials_asked_for(tmp_path: Path) -> None:
    mine = [{"regularizer.text_weight": float(weight), "augment.jitter": 0.1} for weight in (1, 2, 3, 4)]
    study = memory(tmp_path)
    assert study.enqueue(mine, "enqueued") == 4
    assert [asked.settings for asked in run_all(study, 2)] == [REFERENCE, mine[0]]
    assert study.num_waiting == 3
    study.close()
    study = memory(tmp_path)
    assert study.enqueue(mine, "enqueued") == 0
    assert [asked.settings for asked in run_all(study, 4)] == mine[1:3]
    assert [asked.number for asked in run_all(study, 6)] == [4, 5]
    assert study.num_waiting == 0
