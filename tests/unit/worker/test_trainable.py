"""The worker as Ray calls it, without Ray."""

from pathlib import Path
from typing import Any

import pytest

from tune.jobs.spec import Job, Leg
from tune.worker.trainable import TrialWorker


class Told:
    """Jobs that have nothing to do."""

    over = True

    def close(self) -> None:
        """Nothing is open."""

    def advance(self) -> list[dict[str, Any]]:
        return [{"epoch": 1}]


class Worker(TrialWorker):
    def __init__(self, job: Job) -> None:
        self.opened: list[str] = []
        self.setup({"jobs": [job]})

    def open_crew(self, jobs: list[Job], failure: str) -> Any:
        name = Path(jobs[0].run_dir).name
        self.opened.append(name)
        if name == "large":
            raise MemoryError
        return Told()


def job(folder: Path, name: str) -> Job:
    return Job(str(folder / name), (Leg({}),), "final")


def test_a_worker_opens_its_next_job_in_that_ones_first_step(tmp_path: Path) -> None:
    """What fails while a worker is reset, Tune keeps waiting for."""
    worker = Worker(job(tmp_path, "first"))
    assert worker.step() == {"epoch": 1, "done": True}
    assert worker.reset_config({"jobs": [job(tmp_path, "large")]})
    assert worker.opened == ["first"]
    with pytest.raises(MemoryError):
        worker.step()
    assert worker.reset_config({"jobs": [job(tmp_path, "next")]})
    assert worker.step()["done"]
    assert worker.opened == ["first", "large", "next"]
