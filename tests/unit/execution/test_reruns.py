"""Which runs of chosen settings are still to be run, without Ray."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from prometar.config.settings import Config, dump_config
from prometar.distributed.placement import ResourcePlan, Room
from prometar.errors import StorageError
from prometar.training.run_result import RunResult
from tune.execution.reruns import Means, run_missing
from tune.execution.stopping import Stopping
from tune.jobs.spec import Job, Leg, Terms, jobs_in
from tune.worker.trainable import TrialWorker

RESULT = RunResult(
    result={"objective": 60.0}, accuracies={"base": 60.0}, images={"base": 1}, history=(), objective="final",
    classnames=(), template="", run="", data="", weights="", environment={},
)  # fmt: skip


def missing(job: Job) -> list[str]:
    """The folders of the jobs that are run."""
    console = Console()
    means = Means(TrialWorker, ResourcePlan(1, 1.0, 0.0), Room(2, 0), job.terms, Stopping(console), console)
    for batch in run_missing([job], means, what="final run"):
        (begun,) = jobs_in(batch.jobs.suggest("w0"))
        return [begun.run_dir]
    return []


def test_a_damaged_result_is_run_again_also_where_its_like_lies_at_a_url(tmp_path: Path) -> None:
    config, here, store = Config(), tmp_path / "s", tmp_path / "store"
    job = Job(
        str(here / "finals/a"), (Leg(config.model_dump(mode="json")),), "final", terms=Terms(root=str(here))
    )
    away = replace(job, terms=replace(job.terms, files=f"file://{store}"))
    for folder in (here / "finals/a", store / "finals/a"):
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_bytes(dump_config(config).encode())
        RESULT.write(folder)
    assert missing(job) == missing(away) == []
    for folder in (here / "finals/a", store / "finals/a"):
        (folder / "result.json").write_bytes((folder / "result.json").read_bytes()[:40])
    assert missing(away) == [away.run_dir]
    assert missing(job) == [job.run_dir]


@pytest.mark.parametrize("unreadable", ["config.yaml", "result.json"])
def test_a_result_that_cannot_be_read_now_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    config, here = Config(), tmp_path / "s"
    job = Job(
        str(here / "finals/a"), (Leg(config.model_dump(mode="json")),), "final", terms=Terms(root=str(here))
    )
    folder = here / "finals/a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_bytes(dump_config(config).encode())
    RESULT.write(folder)

    def fail(path: Path, flags: int, *more: int) -> int:
        if Path(path).name == unreadable:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, flags, *more)

    opened = os.open
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        with pytest.raises(StorageError, match=f"cannot read .*{unreadable}: Input/output error"):
            missing(job)
    assert missing(job) == []
