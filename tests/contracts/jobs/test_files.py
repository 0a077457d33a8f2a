"""Trials whose files lie at a URL: any machine goes on from there, with the figures of a run in one place."""

import os
import shutil
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tune.jobs.files import JobFiles
from tune.jobs.spec import Job, Leg, Terms
from tune.worker import training_run
from tune.worker.trial_group import Crew

from prometar.data.streaming.stream import stream_local
from prometar.errors import StorageError
from prometar.training.run import Run
from tests.contracts.worker.test_trial_group import GENTLE, figures, finish, jobs


@pytest.fixture(autouse=True)
def _local_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    def local(run: Run, options: object) -> Any:
        return lambda plan, step: stream_local(plan, run.dataset.source, start_step=step)

    monkeypatch.setattr(training_run, "ray_stream", local)


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Moves to a machine with an empty disk."""

    def move(name: str) -> None:
        (tmp_path / name).mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / name))

    return move


def at_url(tmp_path: Path) -> Job:
    (job,) = jobs(tmp_path / "driver" / "trials", GENTLE)
    url = f"file://{tmp_path}/store/study"
    return replace(job, terms=Terms(root=str(tmp_path / "driver"), files=url))


def test_another_machine_goes_on_and_the_driver_reads_the_result(tmp_path: Path, machines: Any) -> None:
    job = at_url(tmp_path)
    machines("one")
    first = Crew([job])
    told = first.advance()
    first.close()
    shutil.rmtree(tmp_path / "one")
    machines("two")
    told += finish(Crew([job]))[1:]  # the first epoch is told again
    (plain,) = jobs(tmp_path / "alone", GENTLE)
    assert figures(told, 0) == figures(finish(Crew([plain])), 0)
    assert not Path(job.run_dir).exists(), "the driver's folder is no worker's"
    JobFiles(job).fetch()
    assert (Path(job.run_dir) / "result.json").exists()
    assert not (Path(job.run_dir) / "checkpoint.safetensors").exists()
    stored = tmp_path / "store/study/trials/0000"
    assert (stored / "checkpoint.safetensors").exists()
    JobFiles(job).drop_states()
    assert not (stored / "checkpoint.safetensors").exists()
    assert (stored / "result.json").exists()


def test_the_result_of_an_earlier_study_at_the_url_is_not_taken_for_this_ones(
    tmp_path: Path, machines: Any
) -> None:
    (old,) = jobs(tmp_path / "driver" / "trials", {**GENTLE, "optim.lr": 0.0})
    job = at_url(tmp_path)
    machines("one")
    finish(Crew([replace(old, terms=job.terms)]))
    stored = tmp_path / "store/study/trials/0000"
    assert (stored / "result.json").exists()
    new = Crew([job])
    new.advance()  # and is interrupted: what lies at the URL now is of the new configuration
    new.close()
    assert not (stored / "result.json").exists()
    assert (stored / "checkpoint.safetensors").exists()


def test_a_job_is_stopped_by_a_file_at_the_url(tmp_path: Path, machines: Any) -> None:
    job = at_url(tmp_path)
    machines("one")
    worker = Crew([job])
    assert [r["epoch"] for r in worker.advance()] == [1]
    JobFiles(job).stop()
    assert finish(worker) == []
    JobFiles(job).allow()
    assert [r["epoch"] for r in finish(Crew([job]))] == [1, 2, 3]


def test_options_of_a_url_stay_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr("tune.jobs.files.Store", opened.append)
    (job,) = jobs(tmp_path / "trials", {})
    terms = Terms(root=str(tmp_path), files="s3://bucket/study?region=eu-west-1")
    files = JobFiles(replace(job, terms=terms))
    assert not opened, "not before it is asked for anything"
    _ = files._store
    assert opened == ["s3://bucket/study/trials/0000?region=eu-west-1"]


def test_a_lost_store_is_no_failure_of_the_trial(tmp_path: Path, machines: Any) -> None:
    job = at_url(tmp_path)
    machines("one")
    worker = Crew([job])
    worker.advance()
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("not a folder any more")
    with pytest.raises(StorageError, match=r"cannot \w+ .*store/study/trials/0000"):
        finish(worker)


@pytest.mark.parametrize("laid", ["link", "open"])
def test_a_folder_that_others_have_laid_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, laid: str
) -> None:
    (tmp_path / "machine").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    (victim := tmp_path / "home").mkdir()
    (victim / "thesis.tex").write_text("years of work")
    own = tmp_path / "machine" / f"prometar-{os.getuid()}-own"
    if laid == "link":
        own.symlink_to(victim)
    else:
        own.mkdir()
        own.chmod(0o777)
    terms = Terms(root=str(tmp_path / "study"), files=f"file://{tmp_path}/store")
    job = Job(str(tmp_path / "study" / "trials" / "0001"), (Leg({}),), "final", terms=terms)
    with pytest.raises(
        StorageError, match=f"cannot use {own}: it is not this user's alone; remove it, or set"
    ):
        JobFiles(job).mirror(job.legs[0])
    assert (victim / "thesis.tex").read_text() == "years of work"


def test_the_own_folder_is_open_to_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    terms = Terms(root="/study", files="file:///nowhere/study")
    folder = JobFiles(Job("/study/trials/0001", (Leg({}),), "final", terms=terms)).own_disk.parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
