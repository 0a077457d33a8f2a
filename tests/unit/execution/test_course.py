"""Batches one after another: none begins before the one before it has ended, and errors come out whole."""

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune import Callback
from ray.tune.search import Searcher
from rich.console import Console

from prometar.distributed.placement import ResourcePlan, Room
from prometar.errors import StorageError, UserError
from tune.execution import runner
from tune.execution.course import Batch, Course, RelayedCallback, RelayedScheduler, RelayedSearcher, Running
from tune.execution.jobs import ListedJobs
from tune.execution.reruns import Means
from tune.execution.runner import run_course
from tune.execution.stopping import Stopping
from tune.jobs.spec import Job, Leg, Terms, jobs_in
from tune.worker.trainable import TrialWorker


def means(stopping: Stopping) -> Means:
    return Means(TrialWorker, ResourcePlan(1, 1.0, 0.0), Room(2, 0), Terms(), stopping, Console())


class Notes(Callback):
    """What a batch's callback is told, in order."""

    def __init__(self, name: str, said: list[str]) -> None:
        self._name, self._said = name, said

    def on_step_end(self, iteration: int, trials: list, **info: Any) -> None:
        self._said.append(f"{self._name} goes on")


def batch(name: str, stopping: Stopping, *callbacks: Callback, jobs: int = 1) -> Batch:
    listed = [Job(f"/{name}{k}", (Leg({}),), "final") for k in range(jobs)]
    return Batch(ListedJobs(listed, stopping, Room(2, 0)), callbacks)


@pytest.fixture
def stopping() -> Stopping:
    return Stopping(Console())


def folder(config: dict[str, Any]) -> str:
    (job,) = jobs_in(config)
    return job.run_dir


def test_the_next_batch_begins_when_all_of_one_has_ended(stopping: Stopping) -> None:
    said: list[str] = []

    def course() -> Course[str]:
        said.append("a begins")
        yield batch("a", stopping, Notes("a", said), jobs=2)
        said.append("a ends")
        said.append("b begins")
        yield batch("b", stopping, Notes("b", said))
        return "result"

    running = Running(course())
    running.begin_next()
    assert running.batch is not None
    searcher, callback = RelayedSearcher(running, stopping), RelayedCallback(running, stopping)
    assert [folder(searcher.suggest(name)) for name in ("w0", "w1")] == ["/a0", "/a1"]
    callback.on_step_end(iteration=1, trials=[])
    searcher.on_trial_complete("w0")
    assert searcher.suggest("w2") is None, "the other one may come back"
    searcher.on_trial_complete("w1")
    assert said == ["a begins", "a goes on"]
    assert folder(searcher.suggest("w2")) == "/b0"
    assert said[2:] == ["a ends", "b begins"]
    callback.on_step_end(iteration=2, trials=[])
    assert said[4:] == ["b goes on"], "and nobody of the first batch is told any more"
    searcher.on_trial_complete("w2")
    assert searcher.suggest("w3") == Searcher.FINISHED
    assert (running.over, running.result) == (True, "result")
    assert searcher.suggest("w4") == Searcher.FINISHED


def test_a_batch_in_which_nothing_is_left_is_passed_over(stopping: Stopping) -> None:
    def course() -> Course[None]:
        yield batch("a", stopping, jobs=0)
        yield batch("b", stopping)

    running = Running(course())
    running.begin_next()
    assert folder(RelayedSearcher(running, stopping).suggest("w0")) == "/b0"


def test_what_is_asked_to_stop_begins_no_other_batch_and_tidies_up(stopping: Stopping) -> None:
    tidied = []

    def course() -> Course[None]:
        try:
            yield batch("a", stopping)
        finally:
            tidied.append("a")
        raise AssertionError("it has gone on")

    left = course()
    running = Running(left)
    running.begin_next()
    searcher = RelayedSearcher(running, stopping)
    searcher.suggest("w0")
    stopping.asked = True
    searcher.on_trial_complete("w0")
    assert searcher.suggest("w1") == Searcher.FINISHED
    assert not running.over
    left.close()
    assert tidied == ["a"]


def test_a_course_without_a_batch_needs_no_ray(stopping: Stopping) -> None:
    def course(*batches: Batch) -> Course[int]:
        yield from batches
        return 3

    assert run_course(course(), means(stopping)) == 3


def test_what_goes_wrong_between_two_batches_comes_out_as_it_is(stopping: Stopping) -> None:
    def course() -> Course[None]:
        yield batch("a", stopping, jobs=0)
        raise UserError("damaged")

    running = Running(course())
    running.begin_next()
    assert RelayedSearcher(running, stopping).suggest("w0") == Searcher.FINISHED
    assert isinstance(running.problem, UserError)
    with pytest.raises(UserError, match="damaged"):
        run_course(_failing(), means(stopping))


def test_a_store_lost_where_a_worker_begins_is_told_as_one_lost_later(
    stopping: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Lost:
        def __init__(self, *_: object, **__: object) -> None: ...

        def fit(self) -> None:
            raise StorageError("cannot read s3://bucket/x: it has gone")

    def course() -> Course[None]:
        yield batch("a", stopping)

    monkeypatch.setattr(runner, "Tuner", Lost)
    said = (
        r"^the study has stopped: cannot read s3://bucket/x: it has gone; the same command goes on from here$"
    )
    with pytest.raises(StorageError, match=said):
        run_course(course(), means(stopping))


def _failing() -> Course[None]:
    raise UserError("damaged")
    yield


def test_terminals_and_storages_are_not_pickled(stopping: Stopping) -> None:
    def course() -> Course[None]:
        yield batch("a", stopping)

    running = Running(course())
    running.begin_next()
    for each in (
        RelayedSearcher(running, stopping),
        RelayedScheduler(running),
        RelayedCallback(running, stopping),
    ):
        assert vars(pickle.loads(pickle.dumps(each))) == {}


def test_of_those_that_wait_the_first_one_begins() -> None:
    def course() -> Course[None]:
        yield from ()

    scheduler = RelayedScheduler(Running(course()))
    trials = [SimpleNamespace(trial_id=name, status="PENDING") for name in ("c", "a", "b")]
    controller = SimpleNamespace(get_live_trials=lambda: {t.trial_id: t for t in trials[::-1]}.values())
    for trial in trials:
        scheduler.on_trial_add(controller, trial)  # type: ignore[arg-type]
    begun = []
    while (chosen := scheduler.choose_trial_to_run(controller)) is not None:
        begun.append(chosen.trial_id)
        chosen.status = "RUNNING"
    assert begun == ["c", "a", "b"]


def test_a_trial_that_outlives_its_batch_stays_its_own(stopping: Stopping) -> None:
    """Tune tries one again whose end a callback could not be told."""
    said: list[str] = []

    class Complete(Callback):
        def __init__(self, name: str) -> None:
            self._name = name

        def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
            said.append(f"{self._name} hears of {trial.trial_id}")

    def course() -> Course[None]:
        yield batch("a", stopping, Complete("a"))
        yield batch("b", stopping, Complete("b"))

    running = Running(course())
    running.begin_next()
    searcher, callback = RelayedSearcher(running, stopping), RelayedCallback(running, stopping)
    searcher.suggest("w0")
    searcher.on_trial_complete("w0")
    assert folder(searcher.suggest("w1")) == "/b0"
    callback.on_trial_complete(iteration=1, trials=[], trial=SimpleNamespace(trial_id="w0"))
    searcher.on_trial_complete("w0")
    assert searcher.suggest("w2") is None, "that of the second batch goes on"
    callback.on_trial_complete(iteration=2, trials=[], trial=SimpleNamespace(trial_id="w1"))
    assert said == ["a hears of w0", "b hears of w1"]
