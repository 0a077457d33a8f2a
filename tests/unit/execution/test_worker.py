"""The worker as Ray calls it, without Ray."""

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from ray.tune import PlacementGroupFactory

from prometar.errors import StorageError
from tests.support.fake_trial import fake_job
from tune.execution.jobs import EpochReport
from tune.execution.resources import ResourcePlan
from tune.execution.worker import MAX_HUNG, Task, TrialWorker, _use_given_gpus

PLAN = ResourcePlan(1, 1.0, 0.5)


def task(folder: Path, number: int, *, timeout: float | None = None, session: str = "b") -> Task:
    job = fake_job(folder, number)
    Path(job.runs[0].folder).mkdir(parents=True, exist_ok=True)
    return Task(job, PLAN, PLAN.bundles(), timeout, session)


class OneEpoch:
    """A training of one epoch."""

    def close(self) -> None:
        """Nothing is open."""

    def advance(self) -> EpochReport:
        return EpochReport(epoch=1, finished=True)


class Worker(TrialWorker):
    def __init__(self, task: Task) -> None:
        self.opened: list[int] = []
        self.setup({"task": task})

    def open_training(self, task: Task) -> OneEpoch:
        self.opened.append(task.job.number)
        if task.job.number == 1:
            raise MemoryError
        return OneEpoch()


def test_a_worker_opens_its_next_job_in_that_ones_first_step(tmp_path: Path) -> None:
    """Tune loses the errors of a reset."""
    worker = Worker(task(tmp_path, 0))
    assert worker.step() == {"epoch": 1, "finished": True, "done": True}
    assert worker.reset_config({"task": task(tmp_path, 1)})
    assert worker.opened == [0]
    with pytest.raises(MemoryError):
        worker.step()
    assert worker.reset_config({"task": task(tmp_path, 2)})
    assert worker.step()["done"]
    assert worker.opened == [0, 1, 2]


def test_a_task_travels_and_names_its_resources(tmp_path: Path) -> None:
    own = task(tmp_path, 0)
    assert pickle.loads(pickle.dumps(own)) == own
    assert own.resources == {"cpus": 1.0, "gpus": 0.5}
    expected = PlacementGroupFactory(PLAN.bundles(), strategy="STRICT_PACK")
    assert TrialWorker.default_resource_request({"task": own}) == expected


def test_only_workers_that_hung_in_the_same_call_count(tmp_path: Path) -> None:
    own = task(tmp_path, 0, timeout=60.0)
    for number in range(MAX_HUNG):
        assert not Worker(own).step().get("failed")
        (own.folder / f"hung-a-here-{number}.txt").write_text("a stack")
        (own.folder / f"hung-b-here-{number + 10}.txt").touch()  # in use
        (own.folder / f"hung-b-here-{number}.txt").write_text("a stack")
    report = Worker(own).step()
    assert report["failed"].startswith("2 workers hung: no result within 60 s.")
    assert report["done"]
    for other in (replace(own, session="c"), replace(own, timeout_seconds=None)):
        assert not Worker(other).step().get("failed"), "the next command tries again"
    assert not list(own.folder.glob("hung-c-*")), "a watch that is over leaves nothing"


def test_a_machine_must_see_the_drivers_folder(tmp_path: Path) -> None:
    own = task(tmp_path, 0)
    own.folder.rmdir()
    with pytest.raises(StorageError, match=r"does not see .*/trials/0000\. Set --out to a folder"):
        Worker(own).step()


def test_a_worker_uses_the_gpus_that_it_was_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("prometar.device.why_no_gpu", lambda: "the driver is too old")
    monkeypatch.setattr("socket.gethostname", lambda: "node3")
    monkeypatch.setattr(ray, "get_gpu_ids", lambda: [0])
    with pytest.raises(StorageError, match=r"node3: the driver is too old.*request no GPUs"):
        _use_given_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setattr(ray, "get_gpu_ids", list)
    _use_given_gpus()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
