"""What Tune is told, without Ray: retries, shares, and an early end."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune.search import Searcher
from rich.console import Console

from tests.support.fake_trial import fake_job
from tune.execution.executor import MAX_RETRIES, _Dispatcher, _Scheduler
from tune.execution.resources import ResourcePlan
from tune.execution.shutdown import Shutdown
from tune.execution.worker import JobRequest
from tune.records.schema import EpochReport

GPU = ResourcePlan(1, 2.0, 0.25, max_cpus=4.0, max_gpus=1.0)


class Tune:
    """Tune's side of a dispatcher of some jobs."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        self.folder, self.shutdown = folder, Shutdown(Console(file=io.StringIO()))
        jobs = (fake_job(folder, k) for k in range(number))
        self.dispatcher = _Dispatcher(jobs, GPU, 9.0, [], self.shutdown)
        self.scheduler = _Scheduler(self.dispatcher)

    def begin(self, trial: str) -> JobRequest | Any:
        found = self.dispatcher.suggest(trial)
        return found["request"] if isinstance(found, dict) else found

    def stops(self, trial: str, epoch: int) -> bool:
        return self.dispatcher(trial, {"report": EpochReport(epoch), "done": False, "pid": 1})

    def die(self, trial: str, error: Exception) -> None:
        file = self.folder / f"{trial}.pkl"
        file.write_bytes(cloudpickle.dumps(error))
        self.scheduler.on_trial_error(None, SimpleNamespace(trial_id=trial, pickled_error_file=str(file)))  # type: ignore[arg-type]
        self.dispatcher.on_trial_complete(trial, error=True)


def raised(error: Exception) -> Exception:
    """An error of a worker as Ray passes it on."""
    return RayTaskError("step", f"Traceback\n{error}", error, "it", 1, "127.0.0.1").as_instanceof_cause()


def test_retries_are_counted_by_epoch(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    first = tune.begin("a")
    assert tune.begin("b") is None, "the running job may need a retry"
    for trial, following in (("a", "b"), ("b", "c")):
        tune.die(trial, ActorDiedError())
        assert tune.begin(following) == first
    assert not tune.stops("c", 1)
    assert not tune.stops("c", 1)
    for k in range(MAX_RETRIES):
        tune.die("cdefg"[k], ActorDiedError())
        assert tune.begin("cdefg"[k + 1]) == first, "a new epoch starts a new count"
    tune.die("cdefg"[MAX_RETRIES], raised(RuntimeError("cheese")))
    assert tune.dispatcher.failures == {"trial 0": "RuntimeError: cheese"}
    assert tune.begin("h") == Searcher.FINISHED


def test_out_of_memory_doubles_the_share(tmp_path: Path) -> None:
    error = raised(MemoryError("of 8 GiB"))
    tune, shares, trial = Tune(tmp_path), [], 0
    while isinstance(request := tune.begin(str(trial)), JobRequest):
        shares.append((request.bundles[0]["GPU"], request.allocated["gpus"]))
        assert request.resource_plan.threads == GPU.threads
        tune.die(str(trial), error)
        trial += 1
    assert shares == [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)], "up to a whole GPU"
    assert "of 8 GiB" in tune.dispatcher.failures["trial 0"]


def test_an_error_that_an_observer_has_stored_is_passed_to_the_others(tmp_path: Path) -> None:
    tune, stops = Tune(tmp_path), Mock(reported=lambda *_: False)
    tune.dispatcher._observers = [stops]
    job = tune.begin("a").job
    assert tune.dispatcher("a", {"report": EpochReport(1, error="the loss is nan")})
    tune.dispatcher.on_trial_complete("a", {})
    stops.finished.assert_called_once_with(job, "the loss is nan")


def test_after_a_stop_nothing_starts_and_nothing_ends(tmp_path: Path) -> None:
    tune = Tune(tmp_path, 2)
    tune.begin("a")
    tune.shutdown.requested = True
    assert tune.stops("a", 1)
    tune.dispatcher.on_trial_complete("a", {})
    assert tune.begin("b") == Searcher.FINISHED
    assert not tune.dispatcher.failures
