"""`run_jobs` with a source of plain jobs: ends, deaths, memory, disks, signals; on Ray, without training."""

import io
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError
from rich.console import Console
from sqlalchemy.exc import OperationalError

from prometar.errors import StorageError
from tests.support.fake_trial import HANGS, FakeTrial, fake_job, misbehave
from tune.execution.executor import ExecutionContext, run_jobs
from tune.execution.jobs import EpochReport, Job, ListedJobs
from tune.execution.resources import ResourcePlan
from tune.execution.worker import Task

pytestmark = pytest.mark.usefixtures("ray_local")


class Source(ListedJobs):
    """A list of jobs that notes everything it is told. `worst`: a job with a lower objective is stopped."""

    def __init__(self, *jobs: Job, worst: float = 0.0) -> None:
        super().__init__(jobs)
        self.worst = worst
        self.reports: dict[int, list[EpochReport]] = {job.number: [] for job in jobs}
        self.resources: dict[int, Mapping[str, float]] = {}
        self.ends: list[tuple[int, str]] = []

    def report(self, job: Job, report: EpochReport, resources: Mapping[str, float]) -> bool:
        self.reports[job.number].append(report)
        self.resources[job.number] = dict(resources)
        return report.get("objective", 100.0) >= self.worst

    def finish(self, job: Job, failure: str) -> None:
        super().finish(job, failure)
        self.ends.append((job.number, failure))

    def epochs(self, number: int) -> list[int]:
        return [report["epoch"] for report in self.reports[number]]


def run(
    folder: Path,
    source: Any,
    behaviour: dict[str, str],
    cpus: float = 1.0,
    concurrent: int = 1,
    timeout: float | None = None,
    trainable: type[FakeTrial] = FakeTrial,
) -> str:
    """Run a source's jobs. Returns what is printed."""
    misbehave(folder, behaviour)
    text = io.StringIO()
    context = ExecutionContext(
        ResourcePlan(concurrent, cpus, 0.0, most_cpus=2.0), Console(file=text, width=200),
        timeout_seconds=timeout, trainable=trainable,
    )  # fmt: skip
    run_jobs(source, context)
    return text.getvalue()


def steps(folder: Path, number: int) -> list[int]:
    """Epochs that a job really ran, in order."""
    return [int(line) for line in (folder / f"trials/{number:04d}/steps.log").read_text().split()]


def test_every_job_ends_once_and_one_worker_serves_them(tmp_path: Path) -> None:
    jobs = [fake_job(tmp_path, number) for number in range(4)]
    source = Source(*jobs, worst=30.0)
    run(tmp_path, source, {"1": "fail", "2": "bad"})
    assert sorted(source.ends) == [(0, ""), (1, "loss is nan in step 7"), (2, ""), (3, "")]
    assert source.failures == {"trial 1": "loss is nan in step 7"}
    assert [source.epochs(number) for number in range(4)] == [[1, 2, 3], [1], [1], [1, 2, 3]]
    assert source.reports[0][-1]["finished"]
    assert source.resources[0] == {"cpus": 1.0, "gpus": 0.0}
    assert len({file.read_text() for file in tmp_path.glob("trials/*/pid")}) == 1


class DiesWhenHandedOver(FakeTrial):
    """A worker that is killed once while it gets ready for job 1."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        task: Task = new_config["task"]
        if task.job.number == 1 and not (task.folder / "died").exists():
            (task.folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)


def test_dead_workers_are_replaced_and_not_for_ever(tmp_path: Path) -> None:
    """One dies in an epoch, one between two jobs, and two hang."""
    source = Source(*(fake_job(tmp_path, number) for number in range(3)))
    run(tmp_path, source, {"0": "crash", "2": "hang"}, timeout=2.0, trainable=DiesWhenHandedOver)
    reasons = dict(source.ends)
    assert (reasons[0], reasons[1]) == ("", "")
    assert steps(tmp_path, 0) == steps(tmp_path, 1) == [1, 2, 3], "it resumed from its own checkpoint"
    assert source.epochs(0) == [1, 1, 2, 3], "epochs that are kept are reported again"
    assert (tmp_path / "trials/0001/died").exists()
    assert reasons[2].startswith("2 workers hung: no result within 2 s. Their stacks are in ")
    stacks = [file.read_text() for file in (tmp_path / "trials/0002").glob("hung-*.txt")]
    assert ["fake_trial.py" in stack for stack in stacks if stack] == [True, True]
    assert steps(tmp_path, 2) == [1]
    assert source.failures == {"trial 2": reasons[2]}


def test_out_of_memory_is_retried_with_a_larger_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU's, as a job says, and a machine's, for which Ray kills its worker."""
    told, epochs = RayActorManager._actor_task_resolved, list[int]()

    def kill_one(manager: RayActorManager, tracked_actor_task: Any, result: Any) -> None:
        epochs.append(result.get("epoch", 0) if isinstance(result, dict) else 0)
        if epochs[-1] != 2 or epochs.count(2) != 1:  # the first job's
            told(manager, tracked_actor_task, result)
        else:
            error = OutOfMemoryError("Task was killed: low on memory.\nMore.")
            manager._actor_task_failed(tracked_actor_task=tracked_actor_task, exception=error)

    monkeypatch.setattr(RayActorManager, "_actor_task_resolved", kill_one)
    source = Source(*(fake_job(tmp_path, number) for number in range(2)))
    run(tmp_path, source, {"1": "needs0.5"}, cpus=0.5)
    assert source.ends == [(0, ""), (1, "")]
    assert steps(tmp_path, 0) == [1, 2, 3]
    assert (tmp_path / "trials/0001/shares.log").read_text().split() == ["0.25"]
    assert [source.resources[n]["cpus"] for n in range(2)] == [0.75, 0.75]


def test_a_full_disk_stops_the_study_and_blames_no_job(tmp_path: Path) -> None:
    source = Source(*(fake_job(tmp_path, number) for number in range(3)))
    with pytest.raises(StorageError) as caught:
        run(tmp_path, source, {"1": "full"})
    folder = tmp_path / "trials/0001"
    assert str(caught.value) == (
        f"Stopped: cannot write {folder}: No space left on device. Rerun the same command to resume."
    )
    assert source.ends == [(0, "")]


@pytest.mark.parametrize("where", ["next", "report"])
def test_an_error_of_the_source_comes_out_as_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def lose(*_: object) -> None:
        try:
            raise OperationalError("UPDATE trials", {}, Exception("database is locked"))
        except OperationalError as error:
            raise RuntimeError("the commit failed") from error

    monkeypatch.setattr(Source, where, lose)
    with pytest.raises(StorageError, match=r"^Stopped: .*database is locked.*Rerun the same") as caught:
        run(tmp_path, Source(fake_job(tmp_path, 0), fake_job(tmp_path, 1)), {})
    assert "\n" not in str(caught.value)


def when(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Act once a condition holds, in another thread."""

    def wait() -> None:
        end = time.monotonic() + 60
        while not condition() and time.monotonic() < end:
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_signal_lets_the_running_epoch_end_and_a_second_one_waits_for_nothing(tmp_path: Path) -> None:
    jobs = [fake_job(tmp_path, 0), fake_job(tmp_path, 1)]

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        misbehave(tmp_path, {})

    thread = when((tmp_path / "trials/0000" / HANGS).exists, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source := Source(*jobs), {"0": "hang"})
    thread.join()
    assert steps(tmp_path, 0) == source.epochs(0) == [1, 2]
    assert source.ends == [], "it is resumed by the next command"
    assert not (tmp_path / "trials/0001").exists()

    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    thread = when((tmp_path / "trials/0001" / HANGS).exists, interrupt_twice)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, again := Source(*jobs), {"1": "hang"})
    thread.join()
    misbehave(tmp_path, {})
    assert steps(tmp_path, 0) == again.epochs(0) == [1, 2, 3]
    assert again.epochs(1) == [1]
