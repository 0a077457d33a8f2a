"""Jobs on Ray: workers die and jobs fail, and every job still gets its record."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray
from ray.util.placement_group import placement_group_table

from prometar.distributed.placement import ResourcePlan
from prometar.errors import WorkError
from prometar.reproduce import execute
from prometar.reproduce.execute import run_jobs
from prometar.reproduce.grid import Job, Record, entries, read_record
from prometar.reproduce.worker import Worker
from tests.support.fakeworker import FakeWorker, NeverStarts
from tests.support.reproductions import IDLE, ask

PLAN = ResourcePlan(max_concurrent=2, cpus_per_trial=0.5, gpus_per_trial=0.0)


def jobs(tmp_path: Path, count: int) -> list[Job]:
    asked = ask("few-shot", ("coop",), seeds=tuple(range(count)), datasets=("dtd",), shots=(1,))
    made = [Job(entry, tmp_path / entry.name, 1, 0.25) for entry in entries(asked, IDLE)]
    for job in made:
        job.folder.mkdir()
    return made


def test_every_job_gets_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None) -> None:
    monkeypatch.setattr(execute, "Worker", FakeWorker)
    monkeypatch.setattr(execute, "MAX_DEATHS", 2)
    work = jobs(tmp_path, 10)
    (work[1].folder / "kills").write_text("1")
    (work[2].folder / "kills").write_text("9")
    (work[3].folder / "raises").write_text("out of\nmemory")
    heard: list[Record] = []
    run_jobs(work, PLAN, on_record=heard.append)
    assert sorted(r.entry.name for r in heard) == sorted(job.entry.name for job in work)
    reasons = {r.entry.config.train.seed: r.reason for r in heard}
    assert {seed for seed, reason in reasons.items() if reason} == {2, 3}
    assert "its worker died 2 times" in reasons[2]
    assert "memory" in reasons[3]
    assert (work[2].folder / "kills").read_text() == "7"
    for job in work:
        (record,) = [r for r in heard if r.entry == job.entry]
        assert read_record(job.entry, job.folder) == record
    pids = [r.environment["pid"] for r in heard if not r.reason]
    at_most = PLAN.max_concurrent + 4  # one for each that died, or raised an error
    assert len(set(pids)) <= at_most < len(pids), "workers are used again"


def test_a_full_disk_ends_the_work_and_fails_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    monkeypatch.setattr(execute, "Worker", FakeWorker)
    work, heard = jobs(tmp_path, 3), list[Record]()
    (work[0].folder / "full").touch()
    with pytest.raises(WorkError, match=r"^cannot write .*: make room; the same command goes on$"):
        run_jobs(work, PLAN, on_record=heard.append)
    places = placement_group_table()
    assert not any(place["state"] == "CREATED" for place in places.values()), "nothing keeps its place"
    assert read_record(work[0].entry, work[0].folder) is None
    (work[0].folder / "full").unlink()
    run_jobs(work, PLAN, on_record=heard.append)
    assert not any(record.reason for record in heard)


def test_workers_that_never_start_end_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    monkeypatch.setattr(execute, "Worker", NeverStarts)
    monkeypatch.setattr(execute, "MAX_DEATHS", 2)
    with pytest.raises(WorkError, match="workers do not start: "):
        run_jobs(jobs(tmp_path, 1), PLAN, on_record=lambda record: None)


def test_no_room_is_said(tmp_path: Path, ray_local: None) -> None:
    plan = ResourcePlan(max_concurrent=1, cpus_per_trial=64.0, gpus_per_trial=0.0)
    with pytest.raises(WorkError, match=r"no worker has started in 1 s: Ray has no room for \[\{'CPU': 32"):
        run_jobs(jobs(tmp_path, 1), plan, on_record=lambda record: None, room_seconds=1.0)


def test_a_worker_that_was_given_no_gpu_sees_none(ray_local: None) -> None:
    class Looks(Worker):
        def gpus(self) -> str:
            return os.environ["CUDA_VISIBLE_DEVICES"]

    options = {"num_cpus": 0.5, "num_gpus": 0, "runtime_env": {"env_vars": {"CUDA_VISIBLE_DEVICES": "0,1"}}}
    worker = ray.remote(Looks).options(**options).remote()
    assert ray.get(worker.gpus.remote()) == "0,1", "Ray hides none"
    ray.get(worker.ready.remote())
    assert ray.get(worker.gpus.remote()) == ""
    ray.kill(worker)


def test_a_gpu_that_torch_cannot_use_ends_the_command_and_is_no_run_s_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    class Given(Worker):
        def ready(self) -> None:
            ray.get_gpu_ids = lambda: [0]
            super().ready()

    monkeypatch.setattr(execute, "Worker", Given)
    heard: list[Record] = []
    with pytest.raises(
        WorkError, match=r"^the machine .* has a GPU that its torch cannot use: .*; mend its "
    ):
        run_jobs(jobs(tmp_path, 1), PLAN, on_record=heard.append)
    assert not heard


def test_a_worker_that_is_still_to_start_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    class StartsOnce(FakeWorker):
        def ready(self) -> None:
            try:
                (tmp_path / "started").touch(exist_ok=False)
            except FileExistsError:
                time.sleep(600)

    monkeypatch.setattr(execute, "Worker", StartsOnce)
    heard: list[Record] = []
    run_jobs(jobs(tmp_path, 2), PLAN, on_record=heard.append, room_seconds=60.0)
    assert len(heard) == 2


def test_deaths_before_a_job_are_forgotten_when_a_worker_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    starts = tmp_path / "starts"

    class StartsEachSecondTime(FakeWorker):
        def ready(self) -> None:
            with starts.open("ab") as file:
                file.write(b"x")
            if starts.stat().st_size % 2:
                os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(execute, "Worker", StartsEachSecondTime)
    monkeypatch.setattr(execute, "MAX_DEATHS", 2)
    plan = ResourcePlan(max_concurrent=1, cpus_per_trial=0.5, gpus_per_trial=0.0)
    work, heard = jobs(tmp_path, 1), list[Record]()
    (work[0].folder / "kills").write_text("1")
    run_jobs(work, plan, on_record=heard.append)
    assert [record.reason for record in heard] == [""]
