"""What Tune is told, without Ray: retries, shares, and an early end."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import ActorDiedError, RayTaskError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from prometar.errors import StorageError
from tests.support.fake_trial import fake_job
from tune.execution.executor import MAX_RETRIES, ExecutionContext, _Dispatcher, _Scheduler
from tune.execution.patching import OutOfMemoryDeath
from tune.execution.resources import ResourcePlan
from tune.execution.stopping import Stopping
from tune.execution.worker import STACKS, Task
from tune.records.schema import EpochReport

GPU = ResourcePlan(1, 2.0, 0.25, most_cpus=4.0, most_gpus=1.0)


class Tune:
    """Tune's side of a dispatcher of some jobs."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        console = Console(file=io.StringIO())
        self.folder, self.stopping = folder, Stopping(console)
        jobs = (fake_job(folder, k) for k in range(number))
        context = ExecutionContext(GPU, console, timeout_seconds=9.0)
        self.dispatcher = _Dispatcher(jobs, context, [], self.stopping)
        self.scheduler = _Scheduler(self.dispatcher)

    def begin(self, trial: str) -> Task | Any:
        found = self.dispatcher.suggest(trial)
        return found["task"] if isinstance(found, dict) else found

    def report(self, trial: str, epoch: int) -> str:
        result = {"report": EpochReport(epoch), "done": False, "pid": 1}
        return self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), result)  # type: ignore[arg-type]

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
    assert tune.report("c", 1) == TrialScheduler.CONTINUE
    assert tune.report("c", 1) == TrialScheduler.CONTINUE
    for k in range(MAX_RETRIES):
        tune.die("cdefg"[k], ActorDiedError())
        assert tune.begin("cdefg"[k + 1]) == first, "a new epoch starts a new count"
    tune.die("cdefg"[MAX_RETRIES], raised(RuntimeError("cheese")))
    assert tune.dispatcher.failures == {"trial 0": "RuntimeError: cheese"}
    assert tune.begin("h") == Searcher.FINISHED


@pytest.mark.parametrize("error", [raised(MemoryError("of 8 GiB")), OutOfMemoryDeath(error_msg="of 8 GiB")])
def test_out_of_memory_doubles_the_share(tmp_path: Path, error: Exception) -> None:
    tune, shares, trial = Tune(tmp_path), [], 0
    while isinstance(task := tune.begin(str(trial)), Task):
        shares.append((task.bundles[0]["GPU"], task.resources["gpus"]))
        assert task.plan.threads == GPU.threads
        tune.die(str(trial), error)
        trial += 1
    assert shares == [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)], "up to a whole GPU"
    assert "of 8 GiB" in tune.dispatcher.failures["trial 0"]


def test_a_worker_that_hung_is_named(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    for trial in range(MAX_RETRIES + 1):
        task = tune.begin(str(trial))
        (task.job.folder / STACKS).write_text("a stack")
        tune.die(str(trial), ActorDiedError())
    assert tune.dispatcher.failures["trial 0"].startswith("Its workers hung: no result within 9 s.")


def test_a_worker_that_cannot_write_stops_the_study(tmp_path: Path) -> None:
    tune = Tune(tmp_path, 2)
    tune.begin("a")
    with pytest.raises(StorageError, match="cannot write a: full") as caught:
        tune.die("a", raised(StorageError("cannot write a: full")))
    assert tune.dispatcher.error is caught.value
    assert tune.dispatcher.stop_all()
    assert not tune.dispatcher.failures, "no job is to blame"


def test_after_a_stop_nothing_starts_and_nothing_ends(tmp_path: Path) -> None:
    tune = Tune(tmp_path, 2)
    tune.begin("a")
    tune.stopping.requested = True
    assert tune.report("a", 1) == TrialScheduler.STOP
    tune.dispatcher.on_trial_complete("a", {})
    assert tune.begin("b") == Searcher.FINISHED
    assert not tune.dispatcher.failures


def test_connections_and_terminals_are_not_pickled(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    assert vars(pickle.loads(pickle.dumps(tune.dispatcher))) == {}
    assert pickle.loads(pickle.dumps(tune.scheduler))
