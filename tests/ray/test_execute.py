"""Jobs of a grid on Ray: workers die and runs fail, and every run still gets its result."""

import os
import signal
from pathlib import Path

import pytest
from ray.util.placement_group import placement_group_table

from prometar.distributed.placement import ResourcePlan
from prometar.errors import StorageError, WorkError
from prometar.reproduce import runner
from prometar.reproduce.grid import GridResult
from prometar.reproduce.runner import GridJob, run_jobs
from tests.support.reproductions import UNTRAINED, ask, result_of

PLAN = ResourcePlan(max_concurrent=2, cpus_per_trial=0.5, gpus_per_trial=0.0)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[GridJob]:
    """Jobs whose folder says how often their worker is killed, or what they raise."""

    def fake(job: GridJob) -> None:
        kills, raises, full = (job.folder / name for name in ("kills", "raises", "full"))
        if kills.exists() and int(kills.read_text()):
            kills.write_text(str(int(kills.read_text()) - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if full.exists():
            raise StorageError(f"cannot write {job.folder}: No space left on device")
        if raises.exists():
            raise RuntimeError(raises.read_text())
        result_of({"all": 50.0}).write(job.folder)

    monkeypatch.setattr(runner, "train_and_test", fake)
    grid = ask("few-shot", ("coop",), seeds=tuple(range(5)), datasets=("dtd",), shots=(1,))
    made = [GridJob(run, tmp_path / run.name, 1, 0.25) for run in grid.runs(UNTRAINED)]
    for job in made:
        job.folder.mkdir()
    return made


def test_every_run_gets_its_result(jobs: list[GridJob], ray_local: None) -> None:
    (jobs[1].folder / "kills").write_text("1")
    (jobs[2].folder / "kills").write_text("9")
    (jobs[3].folder / "raises").write_text("out of\nmemory")
    heard: list[GridResult] = []
    run_jobs(jobs, PLAN, on_result=heard.append)
    assert sorted(found.run.name for found in heard) == sorted(job.run.name for job in jobs)
    reasons = {found.run.config.train.seed: found.reason for found in heard if found.reason}
    assert reasons.keys() == {2, 3}
    assert "its worker died 3 times" in reasons[2]
    assert "memory" in reasons[3]
    assert all(found.finished == (not found.reason) for found in heard)


def test_a_full_disk_ends_the_command_and_fails_no_run(jobs: list[GridJob], ray_local: None) -> None:
    heard: list[GridResult] = []
    (jobs[0].folder / "full").touch()
    with pytest.raises(WorkError, match=r"No space left on device\. Rerun the same command to resume"):
        run_jobs(jobs, PLAN, on_result=heard.append)
    assert not any(found.reason for found in heard)
    places = placement_group_table()
    assert not any(place["state"] == "CREATED" for place in places.values()), "all resources are released"


def test_a_cluster_without_room_is_named(
    jobs: list[GridJob], monkeypatch: pytest.MonkeyPatch, ray_local: None
) -> None:
    monkeypatch.setattr(runner, "START_SECONDS", 1)
    plan = ResourcePlan(max_concurrent=1, cpus_per_trial=64.0, gpus_per_trial=0.0)
    with pytest.raises(WorkError, match="No run has started in 1 s"):
        run_jobs(jobs, plan, on_result=lambda found: None)
