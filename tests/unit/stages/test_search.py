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


def score(objective: float) -> RunScore:
    return RunScore("textures", 3, objective, objective, objective, 1.0)


class Search:
    """One process of a search whose storage is in memory."""

    def __init__(self, out: Path, storage: InMemoryStorage, **options: Any) -> None:
        config = small_config(out, **options)
        self.folder = StudyFolder.of(config)
        self.store = TrialStore(config, storage, self.folder, {})
        self.jobs = SearchJobs(config, self.folder, self.store, count_steps_per_epoch=lambda settings: 100)

    def start(self) -> Job:
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
        assert not self.jobs.reported(job, EpochReport(3, (score(objective),), finished=True))
        self.jobs.finished(job, "")

    @property
    def states(self) -> list[str]:
        """States in the records."""
        return [trial.state for trial in self.folder.read_trials()]


def test_records_follow_the_storage(tmp_path: Path) -> None:
    run = Search(tmp_path, InMemoryStorage(), trials=3)
    first = run.start()
    second = run.start()
    assert [first.name, second.name] == ["trial 0", "trial 1"]
    assert run.jobs.reported(first, EpochReport(1, (score(50.0),)))
    assert run.states == []
    folder = run.folder.trial_folder(0)
    folder.mkdir(parents=True)
    (folder / "checkpoint.safetensors").touch()
    run.finish(first)
    assert run.states == ["COMPLETE"]
    assert not (folder / "checkpoint.safetensors").exists()
    run.jobs.finished(second, "its worker died")
    run.finish(run.start())
    assert run.has_ended()
    assert run.states == ["COMPLETE", "FAIL", "COMPLETE"]
    assert run.folder.read_trials()[1].reason == "its worker died"


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


def test_max_hours_include_earlier_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    storage = InMemoryStorage()
    monkeypatch.setattr(search.time, "monotonic", lambda: now[0])
    run = Search(tmp_path, storage, trials=9, max_hours=1)
    job = run.start()
    now[0] += 2000
    run.jobs.close()
    now[0] += 1601
    assert run.has_ended()
    run.finish(job)
    assert run.has_ended()
    assert list(run.jobs.notices()) == ["Time limit reached (--max-hours): no more trials were started."]
    assert run.store.seconds_searched == 3601
    assert Search(tmp_path, storage, trials=9, max_hours=1).has_ended()
    assert next(Search(tmp_path, storage, trials=9, max_hours=2).jobs)


def test_a_budget_in_steps_counts_running_trials_in_full_and_pruned_ones_in_part(tmp_path: Path) -> None:
    """A trial has 3 epochs of 100 steps."""
    storage = InMemoryStorage()
    settings = {"resources.budget_steps": 700}
    run = Search(tmp_path, storage, trials=9, settings=settings)
    jobs = [run.start(), run.start(), run.start()]
    assert run.waits(), "900 steps will be used, unless a trial is pruned"
    run.finish(jobs[0])
    run.store._tell(jobs[1].trial_number, TrialState.PRUNED)  # before its first epoch
    assert len(run.store.ended_trials) == 2
    jobs.append(run.start())
    for job in jobs[2:]:
        assert run.waits()
        run.finish(job)
    assert run.has_ended()
    assert list(run.jobs.notices()) == ["Budget used: no more trials were started."]
    again = Search(tmp_path, storage, trials=9, settings=settings)
    assert again.has_ended(), "the budget includes earlier commands"
    assert next(Search(tmp_path, storage, trials=9, settings={"resources.budget_steps": 1000}).jobs)


def test_a_budget_in_seconds_counts_training_time(tmp_path: Path) -> None:
    run = Search(tmp_path, InMemoryStorage(), trials=9, settings={"resources.budget_seconds": 1.5})
    run.finish(run.start())  # one second
    job = run.start()
    other = run.start()
    run.jobs.reported(job, EpochReport(1, (score(50.0),)))
    assert run.waits()
    run.finish(job)
    run.finish(other)
    assert run.has_ended()
    assert run.states == ["COMPLETE"] * 3


def test_notices_name_an_exhausted_space_and_a_budget_below_the_number_of_trials(tmp_path: Path) -> None:
    storage = InMemoryStorage()
    run = Search(tmp_path, storage, trials=9, space=Space.model_validate(SPACE))
    for job in run.jobs:
        assert job is not None
        run.finish(job)
    assert run.states == ["COMPLETE"] * 2
    assert list(run.jobs.notices()) == ["Search space exhausted: every combination has been tried."]
    fewer = Search(tmp_path, storage, trials=1, space=Space.model_validate(SPACE))
    assert fewer.has_ended()
    assert list(fewer.jobs.notices()) == ["--trials is 1, but the study has 2 trials. All are used."]
