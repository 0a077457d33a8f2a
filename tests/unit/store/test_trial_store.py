"""Trial store, tested without Ray and without training."""

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from prometar.errors import UserError
from tests.support.databases import (
    BASELINE,
    NAME,
    Samples,
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
from tune.space.ranges import Settings
from tune.store.samplers import STARTUP_TRIALS
from tune.store.storage import open_storage
from tune.store.trial_store import MAX_FAILURES, TrialStore

KINDS = "task.augmentation: {type: choice, choices: [none, feature_mixup, input_mixup]}"
"""Space with three combinations."""
MINE = [{"regularizer.text_weight": float(weight), "augment.jitter": 0.1} for weight in (1, 2, 3)]
"""Settings of a user's file, for `--enqueue`."""


def enqueue(folder: Path, settings: list[dict[str, float]]) -> Path:
    """Write settings into a file for `--enqueue`. Return its path."""
    path = folder / "mine.yaml"
    path.write_text(str(settings))
    return path


def ask(store: TrialStore) -> FrozenTrial:
    """Start the next trial."""
    trial = store.ask()
    assert trial is not None
    return trial


def fail_next(store: TrialStore, reason: str) -> None:
    """Start the next trial, and let it fail."""
    store.fail(ask(store).number, reason)


def test_the_baseline_is_trial_0(tmp_path: Path) -> None:
    store = open_store(tmp_path, trials=5)
    done = run(store)

    assert done[0] == (0, BASELINE)
    assert [trial.origin for trial in store.ended_trials[:2]] == ["baseline", "sampled"]
    assert [trial.objective for trial in store.ended_trials] == [score(settings) for _, settings in done]


def test_a_store_starts_as_many_trials_as_requested_and_more_if_the_number_is_increased(
    tmp_path: Path,
) -> None:
    first = run(open_store(tmp_path, trials=5))
    more = run(open_store(tmp_path, trials=7))
    assert [number for number, _ in first] == [0, 1, 2, 3, 4]
    assert [number for number, _ in more] == [5, 6]


def test_a_record_contains_what_was_reported(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    trial = ask(store)
    first = report(trial, 1, of=2, objective=61.0)
    last = report(trial, 2, of=2, objective=62.0)

    assert store.report(0, first), "the trial continues"
    assert not store.report(0, last), "the trial has finished"

    record = store.record(0)
    assert record.scores_by_epoch == {1: 61.0, 2: 62.0}
    assert record.epoch == 2
    assert record.seconds == 2.0
    assert record.objective == 62.0
    assert record.new == 38.0
    assert record.runs == last.runs


def test_a_report_on_a_trial_that_has_ended_does_not_continue_it(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    only = report(ask(store))
    store.report(0, only)
    assert not store.report(0, only)


def test_samples_are_those_of_optunas_sampler(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    num_done = 12
    run(store, most=num_done)
    study_seed = 3
    seed = int(np.random.SeedSequence([study_seed, num_done]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=STARTUP_TRIALS)
    plain = optuna.create_study(direction="maximize", sampler=sampler)
    plain.add_trials(store._trials)

    _, settings = sample(store.ask())

    assert settings == study_config(tmp_path).search.space.sample(plain.ask())


def test_interrupted_trials_come_first_with_the_same_settings(tmp_path: Path) -> None:
    url = new_database(tmp_path / NAME)
    killed = open_store(tmp_path, url=url, trials=4)
    first = sample(killed.ask())
    second = ask(killed)
    third = sample(killed.ask())
    killed.report(1, report(second))

    # A process that starts no new trials, and is interrupted by a signal.
    interrupted = open_store(tmp_path, url=url, trials=4)
    assert len(interrupted.interrupted_trials) == 2
    assert sample(interrupted.ask(allow_new=False)) == first
    assert sample(interrupted.ask(allow_new=False)) == third
    assert interrupted.ask(allow_new=False) is None
    interrupted.release()
    states = [trial.state for trial in open_study(url).trials]
    assert states.count(TrialState.WAITING) == 2

    # A process that resumes both trials, and starts the fourth one.
    resumed = open_store(tmp_path, url=url, trials=4)
    assert sample(resumed.ask()) == first
    assert sample(resumed.ask()) == third
    assert ask(resumed).number == 3
    assert resumed.ask() is None


def test_an_epoch_may_be_reported_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    trial = ask(store)
    store.report(0, report(trial, 1, of=3))

    again = open_store(tmp_path)
    assert sample(again.ask()) == (0, BASELINE)
    for epoch in (1, 2, 3):
        again.report(0, report(trial, epoch, of=3))

    (record,) = again.ended_trials
    assert record.scores_by_epoch == {epoch: score(BASELINE) + epoch for epoch in (1, 2, 3)}


def test_only_the_newest_epoch_is_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)
    ask(store)  # the baseline, which is never pruned
    trial = ask(store)
    for epoch in (1, 2, 3):
        store.report(1, report(trial, epoch, of=4))

    # After a crash, a new worker reports the epochs again.
    monkeypatch.setattr(store._study.pruner, "prune", lambda *_: True)
    continues = [store.report(1, report(trial, epoch, of=4)) for epoch in (1, 2, 3)]

    assert continues == [True, True, False]
    assert store.ended_trials[0].epoch == 3, "a repeated epoch would be recorded as the last one"


@pytest.mark.parametrize(
    ("failed", "reason"),
    [
        (EpochReport(error="the loss is nan at step 3"), "the loss is nan at step 3"),
        (EpochReport(1), "the trial did not report objective, base, new"),
        (EpochReport(1, (RunScore("a", 1, new=2.0, objective=1.0),)), "the trial did not report base"),
    ],
    ids=["error", "no-score", "no-base-accuracy"],
)
def test_a_failed_report_ends_the_trial(tmp_path: Path, failed: EpochReport, reason: str) -> None:
    store = open_store(tmp_path, goals=("base", "new"))
    ask(store)

    continues = store.report(0, failed)

    assert not continues
    (record,) = store.ended_trials
    assert record.state == "FAIL"
    assert record.reason == reason
    assert store.ask() is not None, "the study goes on"


def prefers_no_augmentation(settings: Any) -> float:
    """Objective that lets a sampler repeat the best combination."""
    return 90.0 if settings["task.augmentation"] == "none" else 10.0


def test_settings_are_tried_once_even_if_they_failed_or_the_sampler_prefers_them(tmp_path: Path) -> None:
    first_process = open_store(tmp_path, space=KINDS)
    ask(first_process)
    _, failed = sample(first_process.ask())
    first_process.fail(1, "diverged")

    second_process = open_store(tmp_path, space=KINDS)
    tried = [settings for _, settings in run(second_process, prefers_no_augmentation)]

    assert second_process.exhausted
    kinds = [settings["task.augmentation"] for settings in (failed, *tried)]
    assert sorted(kinds) == ["feature_mixup", "input_mixup", "none"]


def test_a_space_with_floats_is_never_exhausted(tmp_path: Path) -> None:
    when = "when: {task.augmentation: feature_mixup}"
    mixed = f"{KINDS}\ntask.mixup_alpha: {{type: float, low: 0.1, high: 1.0, {when}}}"
    store = open_store(tmp_path, space=mixed, trials=10)
    assert len(run(store, prefers_no_augmentation)) == 10
    assert not store.exhausted


def test_a_study_stops_after_too_many_failures_without_a_success(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for _ in range(MAX_FAILURES):
        assert store.abort_reason() is None
        fail_next(store, "no such file: x.jpg")
    assert store.ask() is None
    assert store.abort_reason() == "no such file: x.jpg"


def test_a_stopped_study_resumes_with_its_failed_baseline(tmp_path: Path) -> None:
    stopped = open_store(tmp_path)
    for _ in range(MAX_FAILURES):
        fail_next(stopped, "no such file: x.jpg")

    resumed = open_store(tmp_path)
    _, settings = sample(resumed.ask())
    assert settings == BASELINE


def test_failures_after_a_success_do_not_stop_a_study(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    run(store, most=2)
    for _ in range(MAX_FAILURES + 1):
        fail_next(store, "bad luck")
    assert store.abort_reason() is None


def test_the_success_of_a_trial_that_was_running_does_not_cancel_a_stop(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    running = ask(store)
    for _ in range(MAX_FAILURES):
        fail_next(store, "nan")

    continues = store.report(0, report(running))

    assert not continues
    assert store.abort_reason() == "nan"


def settings_of(done: Samples) -> list[Settings]:
    """Settings of trials, in order of their numbers."""
    return [settings for _, settings in done]


def test_each_process_runs_a_failed_baseline_again_which_counts_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"enqueue": [enqueue(tmp_path, MINE)]}
    store = open_store(tmp_path, trials=3, **options)
    fail_next(store, "the worker died")
    assert settings_of(run(store)) == MINE[:2]

    store = open_store(tmp_path, trials=3, **options)
    assert settings_of(run(store)) == [BASELINE]

    store = open_store(tmp_path, trials=5, **options)
    last_enqueued, sampled = settings_of(run(store))
    assert last_enqueued == MINE[2]
    assert sampled not in MINE
    assert [trial.origin for trial in store.ended_trials] == [
        "baseline",
        "enqueued",
        "enqueued",
        "baseline",
        "enqueued",
        "sampled",
    ]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """URL of the database of a study in `tmp_path` with one trial, which has failed."""
    url = new_database(tmp_path / NAME)
    fail_next(open_store(tmp_path, url=url), "the worker died")
    return url


def test_a_study_with_other_settings_is_refused_and_nothing_is_written(url: str, tmp_path: Path) -> None:
    expected = r"was started with other settings \(seed: 3 then, 4 now; train\.seed"
    with pytest.raises(UserError, match=expected):
        open_store(tmp_path, url=url, seed=4)
    assert len(open_study(url).trials) == 1


def test_a_study_in_another_folder_is_refused_and_nothing_is_written(url: str, tmp_path: Path) -> None:
    expected = rf"was created in {tmp_path}/s, and {tmp_path}/other/s is another"
    with pytest.raises(UserError, match=expected):
        open_store(tmp_path / "other", url=url)
    assert len(open_study(url).trials) == 1


def test_a_database_may_move_with_the_folder_of_its_study(url: str, tmp_path: Path) -> None:
    moved = open_store(tmp_path / "moved", storage=open_storage(url))
    assert len(moved.ended_trials) == 1


def test_a_study_in_a_folder_of_any_name_may_be_renamed(tmp_path: Path) -> None:
    out = tmp_path / "lr=1?x=2 {y} %41 é#"  # characters with a meaning in URLs
    (out / NAME).mkdir(parents=True)
    storage = open_storage(study_config(out).storage)
    fail_next(open_store(out, storage=storage), "the worker died")
    assert (out / NAME / "study.db").stat().st_size

    (out / NAME).rename(out / "new")
    storage = open_storage(study_config(out, study="new").storage)
    renamed = open_store(out, storage=storage, study="new")

    (record,) = renamed.ended_trials
    assert record.reason == "the worker died"


def test_a_moved_study_in_a_shared_database_resumes(tmp_path: Path) -> None:
    url = new_database(tmp_path / "database")
    folder = StudyFolder(tmp_path / "before" / NAME)
    folder.path.mkdir(parents=True)
    folder.write_study(study_config(tmp_path / "before"), {}, {})
    fail_next(open_store(tmp_path / "before", url=url), "the worker died")

    (tmp_path / "before").rename(tmp_path / "after")
    moved = open_store(tmp_path / "after", url=url)

    (record,) = moved.ended_trials
    assert record.reason == "the worker died"


def test_a_study_whose_database_is_lost_is_refused(tmp_path: Path) -> None:
    trial_folder = tmp_path / NAME / "trials" / "0000"
    trial_folder.mkdir(parents=True)
    (trial_folder / "record.json").write_text("{}")
    with pytest.raises(UserError, match="contains trials, but the study's database does not"):
        open_store(tmp_path)
