"""`run_jobs` on Ray: jobs that end, fail or run out of memory, workers that die, full disks and signals.

Jobs do not train.
"""

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError
from rich.console import Console
from sqlalchemy.exc import OperationalError

from prometar.errors import InfrastructureError
from tests.support.fake_trial import HANGS, FakeTrial, fake_job, misbehave
from tune.execution.executor import run_jobs
from tune.execution.job import Job
from tune.execution.resources import JobResources
from tune.records.schema import EpochReport

pytestmark = pytest.mark.usefixtures("ray_local")
HOST = socket.gethostname()
SECOND_EPOCH_OF_JOB_1 = 2
"""Jobs run one after another, so the second report of a second epoch is that of job 1."""


class Source:
    """Jobs, and an observer that records everything it is told about them.

    Args:
        jobs: The jobs.
        worst: Objective in percent. A job with a lower one is stopped.
    """

    def __init__(self, *jobs: Job, worst: float = 0.0) -> None:
        self.jobs = jobs
        self.worst = worst
        self.reports: dict[int, list[EpochReport]] = {job.trial_number: [] for job in jobs}
        self.ends: list[tuple[int, str]] = []  # trial number and failure ("" if none) of each job that ended
        self.seen: list[str] = []  # all events, in order

    def started(self, job: Job) -> None:
        self.seen.append(f"{job.name} started")

    def reported(self, job: Job, report: EpochReport) -> bool:
        self.reports[job.trial_number].append(report)
        self.seen.append(f"{job.name} epoch {report.epoch}")
        return report.objective is None or report.objective >= self.worst

    def finished(self, job: Job, failure: str) -> None:
        self.ends.append((job.trial_number, failure))
        event = f"{job.name} finished"
        if failure:
            event += f": {failure}"
        self.seen.append(event)

    def epochs(self, number: int) -> list[int]:
        """Return the epochs that a job has reported, in order."""
        return [report.epoch for report in self.reports[number]]


def run(
    folder: Path,
    source: Source,
    behaviour: dict[str, str],
    *,
    cpus: float = 1.0,
    concurrent: int = 1,
    timeout: float | None = None,
    worker: type[FakeTrial] = FakeTrial,
) -> str:
    """Run the jobs of a source on Ray.

    Args:
        folder: Folder of the study.
        source: The source.
        behaviour: Behaviour of jobs (see `tests.support.fake_trial`).
        cpus: CPUs of each job.
        concurrent: Number of jobs that run at the same time.
        timeout: Longest time of an epoch in seconds. Default: no limit.
        worker: Class of the workers.

    Returns:
        The printed text.
    """
    misbehave(folder, behaviour)
    text = io.StringIO()
    resources = JobResources(
        num_concurrent=concurrent, max_concurrent=concurrent, cpus=cpus, gpus=0.0, max_cpus=2.0
    )
    run_jobs(
        iter(source.jobs),
        resources,
        [source],
        console=Console(file=text, width=200),
        timeout_seconds=timeout,
        worker=worker,
    )
    return text.getvalue()


def steps(folder: Path, number: int) -> list[int]:
    """Return the epochs that a job has run, in order. Epochs that are only reported again do not count."""
    log = folder / f"trials/{number:04d}/steps.log"
    return [int(line) for line in log.read_text().split()]


def failed_shares(folder: Path, number: int) -> list[str]:
    """Return the CPUs of a job's trainer in each attempt that ran out of memory."""
    return (folder / f"trials/{number:04d}/shares.log").read_text().split()


def pids(folder: Path) -> set[str]:
    """Return the process ids of all workers that ran a job."""
    return {file.read_text() for file in folder.glob("trials/*/pid")}


def test_every_job_ends_once_and_one_worker_serves_them(tmp_path: Path) -> None:
    jobs = [fake_job(tmp_path, number) for number in range(4)]
    source = Source(*jobs, worst=30.0)

    run(tmp_path, source, {"1": "fail", "2": "bad"})

    assert sorted(source.ends) == [(0, ""), (1, "loss is nan in step 7"), (2, ""), (3, "")]
    assert [source.epochs(number) for number in range(4)] == [[1, 2, 3], [1], [1], [1, 2, 3]]
    assert len(pids(tmp_path)) == 1

    # The observer is told each event, in order.
    last_report = source.reports[0][-1]
    assert last_report.finished
    assert last_report.runs[0].cpus == 1.0
    assert last_report.runs[0].gpus == 0.0
    assert source.seen[:8] == [
        "trial 0 started",
        "trial 0 epoch 1",
        "trial 0 epoch 2",
        "trial 0 epoch 3",
        "trial 0 finished",
        "trial 1 started",
        "trial 1 epoch 1",
        "trial 1 finished: loss is nan in step 7",
    ]

    # A later command reports finished epochs again, but does not run them again.
    again = Source(*jobs)
    run(tmp_path, again, {"all": "raise"})
    assert again.epochs(0) == [1, 2, 3]
    assert steps(tmp_path, 0) == [1, 2, 3]


def test_a_dead_worker_is_replaced_and_its_job_goes_on(tmp_path: Path) -> None:
    source = Source(fake_job(tmp_path, 0))
    run(tmp_path, source, {"0": "crash"})
    assert source.ends == [(0, "")]
    assert steps(tmp_path, 0) == [1, 2, 3], "it resumed from its own checkpoint"
    assert source.epochs(0) == [1, 1, 2, 3]


def test_an_error_in_a_job_is_the_reason_of_its_failure(tmp_path: Path) -> None:
    source = Source(fake_job(tmp_path, 0))
    run(tmp_path, source, {"0": "raise"})
    assert source.ends == [(0, "RuntimeError: the disk is made of cheese")]


def test_a_job_that_kills_its_workers_stops_the_study_without_a_failed_job(tmp_path: Path) -> None:
    source = Source(*(fake_job(tmp_path, number) for number in range(3)))
    with pytest.raises(InfrastructureError, match=rf"^Stopped: trial 1: .* \(on {HOST}\)\. Rerun the same"):
        run(tmp_path, source, {"1": "crash-always"})
    assert source.epochs(1) == [1, 1, 1], "two retries"
    assert source.ends == [(0, "")]

    again = Source(fake_job(tmp_path, 1), fake_job(tmp_path, 2))
    run(tmp_path, again, {})
    assert again.ends == [(1, ""), (2, "")]


def test_a_hung_worker_is_ended_and_stops_the_study_after_retries(tmp_path: Path) -> None:
    source = Source(fake_job(tmp_path, 3))
    with pytest.raises(InfrastructureError, match=r"^Stopped: trial 3: No epoch finished within 2 s\..*"):
        run(tmp_path, source, {"3": "hang"}, timeout=2.0)
    assert "fake_trial.py" in (tmp_path / "trials/0003/hung.txt").read_text()
    assert steps(tmp_path, 3) == [1]
    assert source.ends == []


class DiesWhenHandedOver(FakeTrial):
    """A worker that is killed while it gets ready for a job: once for job 1, and always for job 2."""

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        job: Job = new_config["request"].job
        death = job.folder / "died"
        is_first_attempt = not death.exists()
        if job.trial_number == 2 or (job.trial_number == 1 and is_first_attempt):
            death.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().reset_config(new_config)


def test_a_worker_killed_between_two_jobs_costs_no_job(tmp_path: Path) -> None:
    source = Source(*(fake_job(tmp_path, number) for number in range(4)))
    run(tmp_path, source, {}, worker=DiesWhenHandedOver)
    # Jobs 1 and 2 end, because a new worker starts with its job, so it does not call `reset_config`.
    assert sorted(source.ends) == [(0, ""), (1, ""), (2, ""), (3, "")]
    assert (tmp_path / "trials/0001/died").exists()
    assert (tmp_path / "trials/0002/died").exists()
    assert [steps(tmp_path, number) for number in range(4)] == [[1, 2, 3]] * 4


def kill_job_1_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Ray kill the worker of job 1 after its second epoch, as if its machine had no memory left."""
    resolve = RayActorManager._actor_task_resolved
    num_second_epochs = 0

    def kill_one(manager: RayActorManager, tracked_actor_task: Any, result: Any) -> None:
        nonlocal num_second_epochs
        is_second_epoch = isinstance(result, dict) and "report" in result and result["report"].epoch == 2
        if is_second_epoch:
            num_second_epochs += 1
        if is_second_epoch and num_second_epochs == SECOND_EPOCH_OF_JOB_1:
            error = OutOfMemoryError("JobRequest was killed: low on memory.\nMore.")
            manager._actor_task_failed(tracked_actor_task=tracked_actor_task, exception=error)
        else:
            resolve(manager, tracked_actor_task, result)

    monkeypatch.setattr(RayActorManager, "_actor_task_resolved", kill_one)


def test_a_job_that_ran_out_of_memory_is_retried_with_a_larger_share_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray kills the worker of job 1. The jobs 2 and 3 raise an error themselves."""
    kill_job_1_for_memory(monkeypatch)
    source = Source(*(fake_job(tmp_path, number) for number in range(4)))

    run(tmp_path, source, {"2": "needs0.5", "3": "needs9"}, cpus=0.5)

    # The jobs 1 and 2 end in the second attempt, with 0.75 instead of 0.5 CPUs.
    reasons = dict(source.ends)
    assert [reasons[number] for number in range(3)] == ["", "", ""]
    assert steps(tmp_path, 1) == [1, 2, 3]
    assert failed_shares(tmp_path, 2) == ["0.25"]
    last_reports = [source.reports[number][-1] for number in range(3)]
    assert [report.runs[0].cpus for report in last_reports] == [0.5, 0.75, 0.75]

    # Job 3 fails after it had a whole machine.
    assert "CUDA out of memory" in reasons[3]
    assert failed_shares(tmp_path, 3) == ["0.25", "0.5", "1", "1.75"]


def test_a_larger_retry_does_not_wait_behind_a_queue_of_small_jobs(tmp_path: Path) -> None:
    source = Source(*(fake_job(tmp_path, number) for number in range(16)))
    behaviour = {str(number): "sleep0.2" for number in range(1, 16)}
    run(tmp_path, source, {**behaviour, "0": "needs0.5"}, cpus=0.5, concurrent=4)
    assert {failure for _, failure in source.ends} == {""}
    before = source.seen[: source.seen.index("trial 0 finished")]
    started = [line for line in before if line.endswith("started")]
    assert len(started) < 12, "it did not wait for all small jobs"


def test_a_full_disk_stops_the_study_without_a_failed_job(tmp_path: Path) -> None:
    source = Source(*(fake_job(tmp_path, number) for number in range(3)))
    with pytest.raises(InfrastructureError) as caught:
        run(tmp_path, source, {"1": "full"})
    folder = tmp_path / "trials/0001"
    assert str(caught.value) == (
        f"Stopped: trial 1: cannot write {folder}: No space left on device (on {HOST}). "
        "Rerun the same command to resume."
    )
    assert source.ends == [(0, "")]


def test_a_job_folder_that_cannot_be_created_stops_the_study(tmp_path: Path) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / "trials/0003").touch()
    with pytest.raises(InfrastructureError, match=r"Stopped: cannot write .*/trials/0003: File exists"):
        run(tmp_path, Source(fake_job(tmp_path, 3)), {})


@pytest.mark.parametrize("where", ["started", "reported", "finished"])
def test_an_error_of_the_observer_stops_all_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def lose(*_: object) -> None:
        raise OperationalError("UPDATE trials", {}, Exception("database is locked"))

    monkeypatch.setattr(Source, where, lose)
    with pytest.raises(OperationalError):
        run(tmp_path, Source(fake_job(tmp_path, 0), fake_job(tmp_path, 1)), {})


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, at most 60 s. Callers check the condition if they depend on it."""
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)


def act_when(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Start a thread that acts once a condition holds, or after 60 s. Return the thread.

    The actions end the jobs of a test. So if the condition never holds, assertions fail, instead of a test
    that waits forever.
    """

    def act() -> None:
        wait_until(condition)
        action()

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def test_a_signal_lets_the_running_epoch_end(tmp_path: Path) -> None:
    source = Source(fake_job(tmp_path, 0), fake_job(tmp_path, 1))

    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.5)
        misbehave(tmp_path, {})

    thread = act_when((tmp_path / "trials/0000" / HANGS).exists, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, source, {"0": "hang"})
    thread.join()
    assert steps(tmp_path, 0) == [1, 2]
    assert source.epochs(0) == [1, 2]
    assert source.ends == [], "the next command resumes it"
    assert not (tmp_path / "trials/0001").exists()

    again = Source(fake_job(tmp_path, 0))
    run(tmp_path, again, {})
    assert steps(tmp_path, 0) == [1, 2, 3]
    assert again.epochs(0) == [1, 2, 3]


def test_a_second_signal_ends_jobs_at_once_and_frees_their_resources(tmp_path: Path) -> None:
    def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGINT)

    source = Source(fake_job(tmp_path, 0))
    thread = act_when((tmp_path / "trials/0000" / HANGS).exists, interrupt)
    # Notebooks keep the last exception. `kept` does so, too.
    with pytest.raises(KeyboardInterrupt) as kept:
        run(tmp_path, source, {"0": "hang"})
    thread.join()
    misbehave(tmp_path, {})
    assert source.epochs(0) == [1]
    wait_until(lambda: ray.available_resources()["CPU"] == 2.0)
    assert ray.available_resources()["CPU"] == 2.0, f"{kept} must not keep the worker"
