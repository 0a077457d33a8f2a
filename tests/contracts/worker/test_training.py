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
    def local(order: ImageOrder, source: Source, step: int, cpus: float) -> Iterator[Batch]:
        return stream_local(order, source, step)

    monkeypatch.setattr(training, "stream", local)


def job(folder: Path, *changes: dict[str, Any]) -> Job:
    """A job of a run for each of these settings."""
    configs = {
        folder / (f"run{k}" if len(changes) > 1 else ""): Config().override({**BASE, **each})
        for k, each in enumerate(changes)
    }
    return Job("trial 3", configs, "base_val", 2)


def opened(job: Job) -> JobTraining:
    return JobTraining(JobRequest(job, PLAN, PLAN.bundles()), RunCache())


def finish(job: Job) -> list[EpochReport]:
    """All reports of a job."""
    started = opened(job)
    reports: list[EpochReport] = []
    while not reports or not reports[-1].finished:
        reports.append(started.advance())
    started.close()
    return reports


def figures(reports: list[EpochReport]) -> list[tuple[object, ...]]:
    """Reports without times and notes."""
    return [(r.epoch, r.objective, r.metrics.get("base"), r.loss, r.finished) for r in reports]


Alone = Callable[[dict[str, Any]], list[EpochReport]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """Reports of a job with one run; each is trained once for all tests."""
    known: dict[str, list[EpochReport]] = {}

    def of(settings: dict[str, Any]) -> list[EpochReport]:
        if str(settings) not in known:
            known[str(settings)] = finish(job(tmp_path_factory.mktemp("alone"), settings))
        return known[str(settings)]

    return of


def test_figures_of_several_runs_are_their_means(tmp_path: Path, alone: Alone) -> None:
    seeds: tuple[dict[str, Any], ...] = ({"train.seed": 0}, {"train.seed": 1})
    reports = finish(job(tmp_path, *seeds))
    assert [(report.epoch, report.finished) for report in reports] == [(1, False), (2, True)]
    for both, a, b in zip(reports, alone(seeds[0]), alone(seeds[1]), strict=True):
        for key in ("objective", "base", "loss"):
            expected = (a.metrics[key] + b.metrics[key]) / 2
            assert both.metrics[key] == pytest.approx(expected, abs=1e-9)
        assert [(run.dataset, run.seed, run.objective) for run in both.runs] == [
            ("cells", 0, a.objective),
            ("cells", 1, b.objective),
        ]
    assert all((tmp_path / f"run{k}" / "result.json").exists() for k in (0, 1))


def test_a_run_with_fewer_epochs_keeps_its_last_score(tmp_path: Path, alone: Alone) -> None:
    short: dict[str, Any] = {"train.seed": 0, "train.epochs": 1}
    long: dict[str, Any] = {"train.seed": 1}
    both = job(tmp_path, short, long)
    assert both.epochs == 2
    reports = finish(both)
    assert [(report.epoch, report.finished) for report in reports] == [(1, False), (2, True)]
    (only,) = alone(short)
    assert [report.runs[0].objective for report in reports] == [only.objective, only.objective]
    assert [report.runs[1].objective for report in reports] == [each.objective for each in alone(long)]
    assert read_result(tmp_path / "run0").last_epoch["epoch"] == 1


def test_a_run_that_is_ahead_waits_for_the_others(tmp_path: Path, alone: Alone) -> None:
    seeds: tuple[dict[str, Any], ...] = ({"train.seed": 0}, {"train.seed": 1})
    own = job(tmp_path, *seeds)
    ahead = opened(own)._open(*next(iter(own.configs.items())))
    ahead.run_epoch()
    ahead.close()
    reports = finish(own)
    assert [report.runs[0].objective for report in reports] == [each.objective for each in alone(seeds[0])]


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


@pytest.mark.parametrize("error", [WorkError("broken image a.jpg"), UserError("a.jpg is missing")])
def test_images_that_cannot_be_streamed_are_a_fault_of_the_machine(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, cpus: float) -> Any:
        raise error

    monkeypatch.setattr(training, "stream", broken)
    with pytest.raises(InfrastructureError, match=r"a\.jpg"):
        opened(job(tmp_path, GENTLE)).advance()


@pytest.mark.parametrize("damage", ["none", "short", "empty", "foreign"])
def test_a_job_resumes_or_starts_over(tmp_path: Path, damage: str, alone: Alone) -> None:
    own = job(tmp_path / "own", GENTLE)
    other = job(tmp_path / "other", {"regularizer.kind": "cosine"})
    first = opened(own)
    report = first.advance()
    first.close()
    path = tmp_path / "own/checkpoint.safetensors"
    content = path.read_bytes()
    if damage == "foreign":
        opened(other).advance()
        content = (tmp_path / "other/checkpoint.safetensors").read_bytes()
    elif damage != "none":
        content = content[: 100 if damage == "short" else 0]
    path.write_bytes(content)
    reports = finish(own)
    assert figures(reports) == figures(alone(GENTLE)), "the same as if it had never been disturbed"
    if damage == "none":
        assert reports[0] == report, "reported again: perhaps nobody has received it"
    else:
        assert "started over: " in reports[-1].notes[0]
        assert (tmp_path / "own/checkpoint.set-aside.safetensors").read_bytes() == content


def test_a_result_of_other_settings_is_removed(tmp_path: Path) -> None:
    finish(job(tmp_path, {"train.epochs": 1}))
    result = (tmp_path / "result.json").read_bytes()
    for name in ("checkpoint.safetensors", "config.yaml"):
        (tmp_path / name).unlink()
    opened(job(tmp_path, {"train.epochs": 1})).advance()
    assert (tmp_path / "result.json").exists()
    (tmp_path / "result.json").write_bytes(result)
    opened(job(tmp_path, GENTLE)).advance()
    assert not (tmp_path / "result.json").exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_result_that_a_failing_disk_hides_is_kept(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = job(tmp_path, {"train.epochs": 1})
    finish(own)
    result = (tmp_path / "result.json").read_bytes()
    read = run_result.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == "result.json":
            raise OSError(number, os.strerror(number), str(path))
        return read(path)

    with monkeypatch.context() as patched:
        patched.setattr(run_result, "read_bytes", failing)
        with pytest.raises(InfrastructureError, match=r"Cannot read .*result\.json"):
            opened(own).advance()
        with pytest.raises(InfrastructureError, match=r"Cannot read .*result\.json"):
            jobs_to_run([own])
    assert (tmp_path / "result.json").read_bytes() == result
    assert jobs_to_run([own]) == []


def test_texts_that_are_missing_on_a_machine_are_not_a_result_of_the_job(tmp_path: Path) -> None:
    """The driver has read them."""
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
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: alive.extend(ref() is not None for ref in sessions)
    )
    started.close()
    assert alive == [False, False]


class WorkerWithoutRay(JobWorker):
    """A worker that no actor contains."""

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
    reused.finish(job(tmp_path / "first", {"train.epochs": 1}))
    num_encoded = encode.call_count
    assert (load.call_count, num_encoded > 0) == (1, True)
    reused.finish(job(tmp_path / "second", {"train.epochs": 1, **GENTLE}))
    assert (load.call_count, encode.call_count) == (1, num_encoded)
    WorkerWithoutRay().finish(job(tmp_path / "third", {"train.epochs": 1, **GENTLE}))
    assert (load.call_count, encode.call_count) == (2, 2 * num_encoded), "another worker has its own cache"
