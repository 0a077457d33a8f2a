"""Trial store, tested without Ray and without training."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from prometar.errors import UserError
from tests.support.databases import (
    BASELINE,
    NAME,
    new_database,
    open_store,
    open_study,
    report,
    run,
    sample,
    score,
    study_config,
)
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport, RunScore
from tune.store.samplers import STARTUP_TRIALS
from tune.store.storage import open_storage
from tune.store.trial_store import MAX_FAILURES, TrialStore

KINDS = "task.augmentation: {type: choice, choices: [none, feature_mixup, input_mixup]}"
MINE = [{"regularizer.text_weight": float(weight), "augment.jitter": 0.1} for weight in (1, 2, 3)]


def enqueue(folder: Path, settings: list[dict[str, float]]) -> Path:
    file = folder / "mine.yaml"
    file.write_text(str(settings))
    return file


def fail_next(store: TrialStore, reason: str) -> None:
    number, _ = sample(store.ask())
    store.fail(number, reason)


def test_the_baseline_is_trial_0_and_the_budget_holds(tmp_path: Path) -> None:
    store = open_store(tmp_path, trials=5)
    done = run(store)
    assert [number for number, _ in done] == [0, 1, 2, 3, 4]
    assert done[0] == (0, BASELINE)
    assert [t.origin for t in store.ended_trials[:2]] == ["baseline", "sampled"]
    assert [t.objective for t in store.ended_trials] == [score(settings) for _, settings in done]
    assert [number for number, _ in run(open_store(tmp_path, trials=7))] == [5, 6]


def test_a_record_holds_what_was_reported(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    trial = store.ask()
    assert trial is not None
    first = report(trial, 1, of=2, objective=61.0)
    assert store.report(0, first)
    last = report(trial, 2, of=2, objective=62.0)
    assert not store.report(0, last)
    record = store.record(0)
    assert record.scores_by_epoch == {1: 61.0, 2: 62.0}
    assert (record.epoch, record.seconds, record.objective, record.new) == (2, 2.0, 62.0, 38.0)
    assert record.runs == last.runs
    assert not store.report(0, first), "the trial has ended"


def test_samples_are_those_of_optunas_sampler(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    run(store, most=12)
    seed = int(np.random.SeedSequence([3, 12]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    plain = optuna.create_study(direction="maximize", sampler=sampler)
    plain.add_trials(store._trials)
    _, settings = sample(store.ask())
    assert settings == study_config(tmp_path).search.space.sample(plain.ask())


def test_interrupted_trials_come_first_with_the_same_settings(tmp_path: Path) -> None:
    url = new_database(tmp_path / NAME)
    store = open_store(tmp_path, url=url, trials=4)
    trials = [store.ask() for _ in range(3)]
    first, _, third = map(sample, trials)
    assert trials[1] is not None
    store.report(1, report(trials[1]))
    again = open_store(tmp_path, url=url, trials=4)
    assert len(again.interrupted_trials) == 2
    assert [sample(again.ask(allow_new=False)), sample(again.ask(allow_new=False))] == [first, third]
    assert again.ask(allow_new=False) is None
    again.release()  # as on an interrupt
    assert [t.state for t in open_study(url).trials].count(TrialState.WAITING) == 2
    again = open_store(tmp_path, url=url, trials=4)
    assert [sample(again.ask()), sample(again.ask())] == [first, third]
    assert sample(again.ask())[0] == 3
    assert again.ask() is None


def test_an_epoch_may_be_reported_again(tmp_path: Path) -> None:
    trial = (store := open_store(tmp_path)).ask()
    assert trial is not None
    store.report(0, report(trial, 1, of=3))
    again = open_store(tmp_path)
    assert sample(again.ask()) == (0, BASELINE)
    for epoch in (1, 2, 3):
        again.report(0, report(trial, epoch, of=3))
    (record,) = again.ended_trials
    assert record.scores_by_epoch == {epoch: score(BASELINE) + epoch for epoch in (1, 2, 3)}


def test_only_the_newest_epoch_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    store.ask()
    trial = store.ask()
    assert trial is not None
    assert all(store.report(1, report(trial, epoch, of=4)) for epoch in (1, 2, 3))
    monkeypatch.setattr(store._study.pruner, "prune", lambda *_: True)
    assert [store.report(1, report(trial, epoch, of=4)) for epoch in (1, 2, 3)] == [True, True, False]
    assert store.ended_trials[0].epoch == 3, "a repeated epoch would be recorded as the last one"


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (EpochReport(error="the loss is nan at step 3"), "the loss is nan at step 3"),
        (EpochReport(1), "the trial did not report objective, base, new"),
        (EpochReport(1, (RunScore("a", 1, new=2.0, objective=1.0),)), "the trial did not report base"),
    ],
)
def test_a_failed_report_ends_the_trial(tmp_path: Path, failed: EpochReport, reason: str) -> None:
    store = open_store(tmp_path, goals=("base", "new"))
    assert store.ask() is not None
    assert not store.report(0, failed)
    assert [(trial.state, trial.reason) for trial in store.ended_trials] == [("FAIL", reason)]
    assert store.ask() is not None


def test_settings_are_tried_once_also_if_they_failed_or_the_model_prefers_them(tmp_path: Path) -> None:
    def value(settings: Any) -> float:
        return 90.0 if settings["task.augmentation"] == "none" else 10.0

    store = open_store(tmp_path, space=KINDS)
    store.ask()
    _, failed = sample(store.ask())
    store.fail(1, "diverged")
    again = open_store(tmp_path, space=KINDS)
    found = [failed, *(settings for _, settings in run(again, value))]
    assert again.exhausted
    assert sorted(each["task.augmentation"] for each in found) == ["feature_mixup", "input_mixup", "none"]

    when = "when: {task.augmentation: feature_mixup}"
    mixed = f"{KINDS}\ntask.mixup_alpha: {{type: float, low: 0.1, high: 1.0, {when}}}"
    store = open_store(tmp_path / "float", space=mixed, trials=10)
    assert len(run(store, value)) == 10, "a space with floats has no end"
    assert not store.exhausted


def test_a_study_with_too_many_failures_stops_and_resumes(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for _ in range(MAX_FAILURES):
        assert store.abort_reason() is None
        fail_next(store, "no such file: x.jpg")
    assert store.ask() is None
    assert store.abort_reason() == "no such file: x.jpg"
    again = open_store(tmp_path)
    (_, first), *_ = run(again, most=2)
    assert first == BASELINE, "a failed baseline is run again"
    for _ in range(MAX_FAILURES + 1):
        fail_next(again, "bad luck")
    assert again.abort_reason() is None
    trial = (store := open_store(tmp_path / "concurrent")).ask()
    assert trial is not None
    for _ in range(MAX_FAILURES):
        fail_next(store, "nan")
    assert not store.report(0, report(trial))
    assert store.abort_reason() == "nan", "a trial that was running does not hide it"


def test_a_failed_baseline_is_run_again_within_the_budget(tmp_path: Path) -> None:
    given: dict[str, Any] = {"trials": 3, "enqueue": [enqueue(tmp_path, MINE)]}
    store = open_store(tmp_path, **given)
    fail_next(store, "the worker died")
    assert [settings for _, settings in run(store)] == MINE[:2]
    store = open_store(tmp_path, **given)
    assert [settings for _, settings in run(store)] == [BASELINE]
    assert [trial.is_baseline for trial in store.ended_trials] == [True, False, False, True]
    store = open_store(tmp_path, **{**given, "trials": 5})
    assert [settings in MINE for _, settings in run(store)] == [True, False]
    assert [t.origin for t in store.ended_trials] == [
        "baseline",
        "enqueued",
        "enqueued",
        "baseline",
        "enqueued",
        "sampled",
    ]


def test_another_study_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    url = new_database(tmp_path / NAME)
    fail_next(open_store(tmp_path, url=url), "the worker died")
    expected = r"was started with other settings \(seed: 3 then, 4 now; train\.seed"
    with pytest.raises(UserError, match=expected):
        open_store(tmp_path, url=url, seed=4)
    with pytest.raises(UserError, match=rf"was created in {tmp_path}/s, and {tmp_path}/other/s is another"):
        open_store(tmp_path / "other", url=url)
    open_store(tmp_path / "moved", storage=open_storage(url))  # its own database may move with the folder
    assert len(open_study(url).trials) == 1


def test_a_study_in_a_folder_of_any_name_may_be_renamed(tmp_path: Path) -> None:
    out = tmp_path / "lr=1?x=2 {y} %41 é#"
    (out / NAME).mkdir(parents=True)
    fail_next(open_store(out, storage=open_storage(study_config(out).storage)), "the worker died")
    assert (out / NAME / "study.db").stat().st_size
    (out / NAME).rename(out / "new")
    moved = open_store(out, storage=open_storage(study_config(out, study="new").storage), study="new")
    assert [trial.reason for trial in moved.ended_trials] == ["the worker died"]


def test_a_moved_study_in_a_shared_database_resumes(tmp_path: Path) -> None:
    url = new_database(tmp_path / "database")
    folder = StudyFolder(tmp_path / "before" / NAME)
    folder.path.mkdir(parents=True)
    folder.write_study(study_config(tmp_path / "before"), {}, {})
    fail_next(open_store(tmp_path / "before", url=url), "the worker died")
    (tmp_path / "before").rename(tmp_path / "after")
    moved = open_store(tmp_path / "after", url=url)
    assert [trial.reason for trial in moved.ended_trials] == ["the worker died"]


def test_a_lost_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s" / "trials" / "0000").mkdir(parents=True)
    (tmp_path / "s" / "trials" / "0000" / "record.json").write_text("{}")
    with pytest.raises(UserError, match="contains trials, but the study's database does not"):
        open_store(tmp_path)
