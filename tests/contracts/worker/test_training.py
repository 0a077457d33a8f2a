"""Training of one job: its reports, failures, checkpoints and results."""

import errno
import os
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import ray
import torch

from prometar.clip import features
from prometar.config.settings import Config
from prometar.data.datasets.dataset import Source
from prometar.data.streaming.order import ImageOrder
from prometar.data.streaming.stream import Batch, stream_local
from prometar.errors import InfrastructureError, InputError, UserError, WorkError
from prometar.training import backbone, run_result
from prometar.training.cache import RunCache
from prometar.training.run_result import read_result
from tests.support.small import BACKBONE
from tune.execution import training, worker
from tune.execution.job import Job
from tune.execution.resources import JobResources
from tune.execution.training import JobTraining
from tune.execution.worker import JobRequest, JobWorker
from tune.records.schema import EpochReport
from tune.stages.study_jobs import jobs_to_run

BASE: dict[str, Any] = {
    **BACKBONE,
    "data.name": "cells",
    "data.shots": 2,
    "train.epochs": 2,
    "optim.warmup_epochs": 0,
}
GENTLE: dict[str, Any] = {"regularizer.text_weight": 5.0, "inner.lr": 0.01}
PLAN = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.0)


@pytest.fixture(autouse=True)
def _local_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read images in this process instead of on Ray Data."""

    def local(order: ImageOrder, source: Source, step: int, cpus: float) -> Iterator[Batch]:
        return stream_local(order, source, step)

    monkeypatch.setattr(training, "stream", local)


def job(folder: Path, *changes: dict[str, Any]) -> Job:
    """Return a job of one or more runs.

    Args:
        folder: Folder of a single run. Several runs have the folders run0, run1 and so on below it.
        changes: Settings of each run that differ from `BASE`.
    """
    configs = {}
    for number, settings in enumerate(changes):
        run_folder = folder
        if len(changes) > 1:
            run_folder = folder / f"run{number}"
        configs[run_folder] = Config().override({**BASE, **settings})
    return Job("trial 3", configs, objective="base_val", val_per_class=2)


def opened(job: Job) -> JobTraining:
    """Return the training of a job in a new worker."""
    return JobTraining(JobRequest(job, PLAN, PLAN.bundles()), RunCache())


def finish(job: Job) -> list[EpochReport]:
    """Train a job until its end. Return its reports."""
    started = opened(job)
    reports: list[EpochReport] = []
    while not reports or not reports[-1].finished:
        reports.append(started.advance())
    started.close()
    return reports


def figures(reports: list[EpochReport]) -> list[tuple[object, ...]]:
    """Return the contents of reports without times and notes."""
    contents: list[tuple[object, ...]] = []
    for report in reports:
        base = report.metrics.get("base")
        contents.append((report.epoch, report.objective, base, report.loss, report.finished))
    return contents


def objectives_of_run(number: int, reports: list[EpochReport]) -> list[float | None]:
    """Return the objective of one of a job's runs in each report."""
    return [report.runs[number].objective for report in reports]


Alone = Callable[[dict[str, Any]], list[EpochReport]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """A function that returns the reports of a job with a single run, given its settings.

    Each job is trained only once for all tests.
    """
    known: dict[str, list[EpochReport]] = {}

    def reports(settings: dict[str, Any]) -> list[EpochReport]:
        key = str(settings)
        if key not in known:
            known[key] = finish(job(tmp_path_factory.mktemp("alone"), settings))
        return known[key]

    return reports


SEED_0: dict[str, Any] = {"train.seed": 0}
SEED_1: dict[str, Any] = {"train.seed": 1}


def test_figures_of_several_runs_are_their_means(tmp_path: Path, alone: Alone) -> None:
    reports = finish(job(tmp_path, SEED_0, SEED_1))

    assert [(report.epoch, report.finished) for report in reports] == [(1, False), (2, True)]
    for both, first, second in zip(reports, alone(SEED_0), alone(SEED_1), strict=True):
        for key in ("objective", "base", "loss"):
            expected = (first.metrics[key] + second.metrics[key]) / 2
            assert both.metrics[key] == pytest.approx(expected, abs=1e-9)


def test_a_report_contains_the_score_of_each_run(tmp_path: Path, alone: Alone) -> None:
    reports = finish(job(tmp_path, SEED_0, SEED_1))

    for both, first, second in zip(reports, alone(SEED_0), alone(SEED_1), strict=True):
        scores = [(run.dataset, run.seed, run.objective) for run in both.runs]
        assert scores == [("cells", 0, first.objective), ("cells", 1, second.objective)]
    assert (tmp_path / "run0" / "result.json").exists()
    assert (tmp_path / "run1" / "result.json").exists()


def test_a_run_with_fewer_epochs_keeps_its_last_score(tmp_path: Path, alone: Alone) -> None:
    short: dict[str, Any] = {"train.seed": 0, "train.epochs": 1}
    both = job(tmp_path, short, SEED_1)
    assert both.epochs == 2

    reports = finish(both)

    assert [(report.epoch, report.finished) for report in reports] == [(1, False), (2, True)]
    (only,) = alone(short)
    assert objectives_of_run(0, reports) == [only.objective, only.objective]
    assert objectives_of_run(1, reports) == [report.objective for report in alone(SEED_1)]
    assert read_result(tmp_path / "run0").last_epoch["epoch"] == 1


def test_a_run_that_is_ahead_waits_for_the_others(tmp_path: Path, alone: Alone) -> None:
    """A worker that was killed between the epochs of two runs leaves one of them ahead."""
    own = job(tmp_path, SEED_0, SEED_1)
    folder, config = next(iter(own.configs.items()))
    ahead = opened(own)._open(folder, config)
    ahead.run_epoch()
    ahead.close()

    reports = finish(own)

    assert objectives_of_run(0, reports) == [report.objective for report in alone(SEED_0)]


def test_a_job_whose_loss_diverges_is_a_failed_report(tmp_path: Path) -> None:
    (diverged,) = finish(job(tmp_path, {"optim.lr": 1e30}))
    assert "finite" in diverged.error or "nan" in diverged.error


def test_settings_that_do_not_fit_are_a_failed_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **options: object) -> None:
        raise UserError("prompts.num_tokens is too large.")

    monkeypatch.setattr(training, "build_run", refuse)
    (report,) = finish(job(tmp_path, GENTLE))
    assert report.error == "prompts.num_tokens is too large."


def test_data_that_is_missing_here_is_a_fault_of_the_machine(tmp_path: Path) -> None:
    own = job(tmp_path, {"data.name": "folder", "data.root": str(tmp_path / "not-mounted")})
    with pytest.raises(InfrastructureError, match=r"not-mounted is not a folder"):
        opened(own).advance()


def test_weights_that_are_missing_here_are_a_fault_of_the_machine(tmp_path: Path) -> None:
    weights = {"backbone.name": "ViT-B-32", "backbone.pretrained": str(tmp_path / "clip.safetensors")}
    with pytest.raises(InfrastructureError, match=r"clip.safetensors does not exist"):
        opened(job(tmp_path, weights)).advance()


@pytest.mark.parametrize(
    "error", [WorkError("broken image a.jpg"), UserError("a.jpg is missing")], ids=["broken", "missing"]
)
def test_images_that_cannot_be_streamed_are_a_fault_of_the_machine(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, cpus: float) -> Any:
        raise error

    monkeypatch.setattr(training, "stream", broken)
    with pytest.raises(InfrastructureError, match=r"a\.jpg"):
        opened(job(tmp_path, GENTLE)).advance()


def test_a_job_resumes_and_reports_its_finished_epoch_again(tmp_path: Path, alone: Alone) -> None:
    """Perhaps nobody has received the first report."""
    own = job(tmp_path, GENTLE)
    interrupted = opened(own)
    report = interrupted.advance()
    interrupted.close()

    reports = finish(own)

    assert reports[0] == report
    assert figures(reports) == figures(alone(GENTLE))


@pytest.mark.parametrize("damage", ["short", "empty", "foreign"])
def test_a_job_with_an_unusable_checkpoint_starts_over_and_keeps_the_file(
    tmp_path: Path, damage: str, alone: Alone
) -> None:
    own = job(tmp_path / "own", GENTLE)
    interrupted = opened(own)
    interrupted.advance()
    interrupted.close()
    path = tmp_path / "own/checkpoint.safetensors"
    if damage == "foreign":
        opened(job(tmp_path / "other", {"regularizer.kind": "cosine"})).advance()
        content = (tmp_path / "other/checkpoint.safetensors").read_bytes()
    elif damage == "short":
        content = path.read_bytes()[:100]
    else:
        content = b""
    path.write_bytes(content)

    reports = finish(own)

    assert figures(reports) == figures(alone(GENTLE))
    assert "started over: " in reports[-1].notes[0]
    assert (tmp_path / "own/checkpoint.set-aside.safetensors").read_bytes() == content


def test_a_run_that_has_lost_all_files_but_its_result_is_trained_again(tmp_path: Path) -> None:
    own = job(tmp_path, {"train.epochs": 1})
    finish(own)
    for name in ("checkpoint.safetensors", "config.yaml"):
        (tmp_path / name).unlink()
    opened(own).advance()
    assert (tmp_path / "result.json").exists()


def test_a_result_of_other_settings_is_removed(tmp_path: Path) -> None:
    finish(job(tmp_path, {"train.epochs": 1}))
    opened(job(tmp_path, GENTLE)).advance()
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_result_that_a_failing_disk_hides_is_kept(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = job(tmp_path, {"train.epochs": 1})
    finish(own)
    result = (tmp_path / "result.json").read_bytes()
    read_bytes = run_result.read_bytes

    def fail_for_results(path: Path) -> bytes:
        if path.name == "result.json":
            raise OSError(number, os.strerror(number), str(path))
        return read_bytes(path)

    with monkeypatch.context() as patched:
        patched.setattr(run_result, "read_bytes", fail_for_results)
        with pytest.raises(InfrastructureError, match=r"Cannot read .*result\.json"):
            opened(own).advance()
        with pytest.raises(InfrastructureError, match=r"Cannot read .*result\.json"):
            jobs_to_run([own])
    assert (tmp_path / "result.json").read_bytes() == result
    assert jobs_to_run([own]) == []


def test_texts_that_are_missing_on_a_machine_are_not_a_result_of_the_job(tmp_path: Path) -> None:
    """The driver has read the texts, so the machine of the worker lacks them."""
    changes = {"regularizer.kind": "cosine", "regularizer.texts": str(tmp_path / "not-mounted/texts.json")}
    with pytest.raises(InputError, match=r"Cannot read regularizer\.texts .*not-mounted/texts\.json"):
        opened(job(tmp_path / "run", changes)).advance()


def test_no_session_is_alive_when_gpu_memory_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a worker keeps the memory of its last job, and other workers on the GPU have less."""
    alive: list[bool] = []
    started = opened(job(tmp_path, {"train.epochs": 1}, {"train.epochs": 1, "train.seed": 1}))
    started.advance()
    sessions = [weakref.ref(session) for session in started._sessions.values()]
    assert len(sessions) == 2
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)

    def note_sessions() -> None:
        alive.extend(reference() is not None for reference in sessions)

    monkeypatch.setattr(torch.cuda, "empty_cache", note_sessions)
    started.close()

    assert alive == [False, False]


class WorkerWithoutRay(JobWorker):
    """A worker that no actor of Ray contains."""

    def __init__(self) -> None:
        """Tune's initialization requires an actor."""

    def finish(self, job: Job) -> None:
        """Run a job from its start to its end."""
        job.folder.mkdir(parents=True, exist_ok=True)
        self.reset_config({"request": JobRequest(job, PLAN, PLAN.bundles())})
        finished = False
        while not finished:
            report = self.step().get("report")
            finished = isinstance(report, EpochReport) and report.finished


def test_a_job_is_tested_on_other_datasets_with_the_backbone_of_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = mock.Mock(side_effect=backbone.load_backbone)
    monkeypatch.setattr(backbone, "load_backbone", load)
    finish(replace(job(tmp_path, {"train.epochs": 1}), targets=("cells",)))
    assert read_result(tmp_path).tests.keys() == {"cells"}
    assert load.call_count == 1


def test_a_worker_loads_weights_and_computes_frozen_features_once_for_all_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_prepare_gpu", lambda share: None)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "node"))
    load = mock.Mock(side_effect=backbone.load_backbone)
    encode = mock.Mock(side_effect=features.encode_image)
    monkeypatch.setattr(backbone, "load_backbone", load)
    monkeypatch.setattr(features, "encode_image", encode)
    reused = WorkerWithoutRay()

    # The first job of a worker loads the weights and encodes the images.
    reused.finish(job(tmp_path / "first", {"train.epochs": 1}))
    num_encoded = encode.call_count
    assert load.call_count == 1
    assert num_encoded > 0

    # The second one uses them.
    reused.finish(job(tmp_path / "second", {"train.epochs": 1, **GENTLE}))
    assert load.call_count == 1
    assert encode.call_count == num_encoded

    # Another worker has its own.
    WorkerWithoutRay().finish(job(tmp_path / "third", {"train.epochs": 1, **GENTLE}))
    assert load.call_count == 2
    assert encode.call_count == 2 * num_encoded
