"""Search: records follow the storage, and the search ends when it should."""

from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from optuna.trial import TrialState

from tests.support.driver import small_config
from tune import Space
from tune.execution.job import Job
from tune.records.folder import StudyFolder
from tune.records.schema import EpochReport, RunScore
from tune.stages import search
from tune.stages.search import SearchJobs
from tune.store.trial_store import TrialStore

SPACE = {"name": "kinds", "ranges": {"regularizer.kind": {"type": "choice", "choices": ["l1", "l2"]}}}


"""Space with two combinations."""


def score(objective: float) -> RunScore:
    """Score of a run that has trained for one second."""
    return RunScore("textures", seed=3, base=objective, new=objective, objective=objective, seconds=1.0)


class Search:
    """One process of a search whose storage is in memory. A trial has three epochs of 100 steps.

    Args:
        out: Parent of the study's folder.
        storage: Storage, which several processes may share.
        options: Options of the study.
    """

    def __init__(self, out: Path, storage: InMemoryStorage, **options: Any) -> None:
        config = small_config(out, **options)
        self.folder = StudyFolder.of(config)
        self.store = TrialStore(config, storage, self.folder, {})
        self.jobs = SearchJobs(config, self.folder, self.store, count_steps_per_epoch=lambda settings: 100)

    def start(self) -> Job:
        """Start the next trial."""
        job = next(self.jobs)
        assert job is not None
        return job

    def waits(self) -> bool:
        """True if no trial starts until a running one has ended."""
        return next(self.jobs) is None

    def has_ended(self) -> bool:
        """True if no more trials start."""
        return next(self.jobs, "the end") == "the end"

    def finish(self, job: Job, objective: float = 60.0) -> None:
        """Report the last epoch of a trial."""
        continues = self.jobs.reported(job, EpochReport(3, (score(objective),), finished=True))
        assert not continues
        self.jobs.finished(job, "")

    @property
    def states(self) -> list[str]:
        """State of each trial that has a record."""
        return [trial.state for trial in self.folder.read_trials()]


def test_a_trial_gets_its_record_when_it_ends(tmp_path: Path) -> None:
    run = Search(tmp_path, InMemoryStorage(), trials=3)
    first = run.start()
    second = run.start()
    assert [first.name, second.name] == ["trial 0", "trial 1"]
    continues = run.jobs.reported(first, EpochReport(1, (score(50.0),)))
    assert continues
    assert run.states == []

    run.finish(first)
    assert run.states == ["COMPLETE"]

    run.jobs.finished(second, "its worker died")
    run.finish(run.start())
    assert run.has_ended()
    assert run.states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert run.folder.read_trials()[1].reason == "its worker died"


def test_the_checkpoint_of_a_trial_is_deleted_when_it_ends(tmp_path: Path) -> None:
    run = Search(tmp_path, InMemoryStorage())
    job = run.start()
    folder = run.folder.trial_folder(0)
    folder.mkdir(parents=True)
    checkpoint = folder / "checkpoint.safetensors"
    checkpoint.touch()

    run.finish(job)
    assert not checkpoint.exists()


def test_a_record_that_a_kill_prevented_is_written_by_the_next_process(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    killed = Search(tmp_path, storage, trials=2)
    job = killed.start()
    killed.store.report(job.trial_number, EpochReport(3, (score(60.0),), finished=True))
    assert killed.states == []
    running = killed.start()

    resumed = Search(tmp_path, storage, trials=2)
    assert resumed.states == ["COMPLETE"]
    assert resumed.start() == running


class Clock:
    """Replaces `time.monotonic` of the search."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(search.time, "monotonic", lambda: self.now)


def test_the_time_limit_lets_running_trials_finish_and_starts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    run = Search(tmp_path, InMemoryStorage(), trials=9, max_hours=1)
    job = run.start()
    clock.now += 3601
    assert run.has_ended()

    run.finish(job)
    assert run.has_ended()
    assert list(run.jobs.notices()) == ["Time limit reached (--max-hours): no more trials were started."]


def test_the_time_limit_includes_earlier_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    storage = InMemoryStorage()
    first = Search(tmp_path, storage, trials=9, max_hours=1)
    clock.now += 2000
    first.jobs.close()
    clock.now += 1601
    first.jobs.close()
    assert first.store.seconds_searched == 3601

    same_limit = Search(tmp_path, storage, trials=9, max_hours=1)
    larger_limit = Search(tmp_path, storage, trials=9, max_hours=2)
    assert same_limit.has_ended()
    assert larger_limit.start()


def test_a_budget_in_steps_counts_running_trials_in_full_and_pruned_ones_in_part(tmp_path: Path) -> None:
    run = Search(tmp_path, InMemoryStorage(), trials=9, settings={"resources.budget_steps": 700})
    first = run.start()
    second = run.start()
    third = run.start()
    assert run.waits(), "900 steps will be used, unless a trial is pruned"

    run.finish(first)
    run.store._tell(second.trial_number, TrialState.PRUNED)  # before its first epoch
    assert len(run.store.ended_trials) == 2
    fourth = run.start()
    assert run.waits(), "900 steps will be used"

    run.finish(third)
    assert run.waits()
    run.finish(fourth)
    assert run.has_ended()
    assert list(run.jobs.notices()) == ["Budget used: no more trials were started."]


def test_a_budget_includes_earlier_commands(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    settings = {"resources.budget_steps": 300}
    first = Search(tmp_path, storage, trials=9, settings=settings)
    first.finish(first.start())

    same_budget = Search(tmp_path, storage, trials=9, settings=settings)
    larger_budget = Search(tmp_path, storage, trials=9, settings={"resources.budget_steps": 400})
    assert same_budget.has_ended()
    assert larger_budget.start()


def test_a_budget_in_seconds_counts_training_time(tmp_path: Path) -> None:
    run = Search(tmp_path, InMemoryStorage(), trials=9, settings={"resources.budget_seconds": 1.5})
    run.finish(run.start())  # after one second
    second = run.start()
    third = run.start()
    run.jobs.reported(second, EpochReport(1, (score(50.0),)))  # after another second
    assert run.waits()

    run.finish(second)
    run.finish(third)
    assert run.has_ended()
    assert run.states == ["COMPLETE"] * 3


def test_notices_name_an_exhausted_space_and_a_number_of_trials_above_the_requested_one(
    tmp_path: Path,
) -> None:
    storage = InMemoryStorage()
    space = Space.model_validate(SPACE)
    run = Search(tmp_path, storage, trials=9, space=space)
    for job in run.jobs:
        assert job is not None
        run.finish(job)
    assert run.states == ["COMPLETE"] * 2
    assert list(run.jobs.notices()) == ["Search space exhausted: every combination has been tried."]

    fewer = Search(tmp_path, storage, trials=1, space=space)
    assert fewer.has_ended()
    assert list(fewer.jobs.notices()) == ["--trials is 1, but the study has 2 trials. All are used."]
