"""What Tune is told, without Ray: retries, shares, and an early end."""

import io
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfDiskError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher
from rich.console import Console

from prometar.errors import StorageError
from tests.support.fake_trial import fake_job
from tune.execution.executor import (
    _OUT_OF_MEMORY,
    MAX_RETRIES,
    ExecutionContext,
    _Abort,
    _Dispatcher,
    _Scheduler,
    _Searcher,
)
from tune.execution.jobs import ListedJobs
from tune.execution.resources import ResourcePlan
from tune.execution.stopping import Stopping
from tune.execution.worker import Task

GPU = ResourcePlan(1, 2.0, 0.25, most_cpus=4.0, most_gpus=1.0)


class Tune:
    """Tune's side of a dispatcher of some jobs."""

    def __init__(self, folder: Path, number: int = 1, plan: ResourcePlan = GPU) -> None:
        console = Console(file=io.StringIO())
        self.folder, self.stopping = folder, Stopping(console)
        self.source = ListedJobs(fake_job(folder, k) for k in range(number))
        context = ExecutionContext(plan, console)
        self.dispatcher = _Dispatcher(self.source, context, [], self.stopping)
        self.searcher, self.scheduler = _Searcher(self.dispatcher), _Scheduler(self.dispatcher)

    def begin(self, trial: str) -> Task | Any:
        found = self.searcher.suggest(trial)
        return found["task"] if isinstance(found, dict) else found

    def report(self, trial: str, epoch: int) -> str:
        result = {"epoch": epoch, "objective": 50.0, "finished": False, "done": False, "pid": 1}
        return self.scheduler.on_trial_result(None, SimpleNamespace(trial_id=trial), result)  # type: ignore[arg-type]

    def die(self, trial: str, text: str) -> None:
        file = self.folder / f"{trial}.txt"
        file.write_text(f"Failure # 1 (occurred at noon)\n{text}\n")
        self.scheduler.on_trial_error(None, SimpleNamespace(trial_id=trial, error_file=str(file)))  # type: ignore[arg-type]
        self.searcher.on_trial_complete(trial, error=True)


def test_retries_are_counted_by_epoch(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    first = tune.begin("a")
    assert tune.begin("b") is None, "the running job may need a retry"
    for trial, following in (("a", "b"), ("b", "c")):
        tune.die(trial, "The actor died.")
        assert tune.begin(following) == first
    assert tune.report("c", 1) == TrialScheduler.CONTINUE
    assert tune.report("c", 1) == TrialScheduler.CONTINUE
    for k in range(MAX_RETRIES):
        tune.die("cdefg"[k], "The actor died.")
        assert tune.begin("cdefg"[k + 1]) == first, "a new epoch starts a new count"
    tune.die("cdefg"[MAX_RETRIES], "Traceback\nRuntimeError: cheese")
    assert tune.source.failures == {"trial 0": "RuntimeError: cheese"}
    assert tune.begin("h") == Searcher.FINISHED


@pytest.mark.parametrize("sign", _OUT_OF_MEMORY)
def test_out_of_memory_doubles_the_share(tmp_path: Path, sign: str) -> None:
    tune, shares, trial = Tune(tmp_path), [], 0
    while isinstance(task := tune.begin(str(trial)), Task):
        shares.append((task.bundles[0]["GPU"], task.resources["gpus"]))
        assert task.plan.threads == GPU.threads
        tune.die(str(trial), f"RuntimeError: {sign} (of 8 GiB)\nFor debugging consider passing A=1")
        trial += 1
    assert shares == [(0.25, 0.25), (0.5, 0.5), (1.0, 1.0)], "up to a whole GPU"
    assert sign in tune.source.failures["trial 0"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ray::step()\nprometar.errors.StorageError: cannot write a: full", "cannot write a: full"),
        ("ray::step()\nOSError: [Errno 28] No space left on device: 'b'",
         "[Errno 28] No space left on device: 'b'"),
        (f"ray::step()\n{OutOfDiskError()}", "The object cannot be created because"),
    ],
)  # fmt: skip
def test_a_worker_that_cannot_write_stops_the_study(tmp_path: Path, text: str, said: str) -> None:
    tune = Tune(tmp_path, 2)
    tune.begin("a")
    with pytest.raises(StorageError) as caught:
        tune.die("a", text)
    assert str(caught.value).startswith(said)
    assert tune.dispatcher.error is caught.value
    assert _Abort(tune.dispatcher).stop_all()
    assert not tune.source.failures, "no job is to blame"


def test_after_a_stop_nothing_starts_and_nothing_ends(tmp_path: Path) -> None:
    tune = Tune(tmp_path, 2)
    tune.begin("a")
    tune.stopping.requested = True
    assert tune.report("a", 1) == TrialScheduler.STOP
    tune.searcher.on_trial_complete("a", {})
    assert tune.begin("b") == Searcher.FINISHED
    assert not tune.source.failures


def test_connections_and_terminals_are_not_pickled(tmp_path: Path) -> None:
    tune = Tune(tmp_path)
    for each in (tune.searcher, tune.scheduler, _Abort(tune.dispatcher)):
        assert vars(pickle.loads(pickle.dumps(each))) == {}
