"""Every write of a run is refused in turn: one line, no half-written file counts, the same command resumes.

The arithmetic is a formula, the writing is a worker's own.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from prometar import run_folder
from prometar.analysis import alignment
from prometar.analysis.alignment import AlignmentRecorder
from prometar.clip.features import cached_text_features
from prometar.clip.openclip import tokenize
from prometar.config.settings import Config, dump_config
from prometar.errors import InfrastructureError
from prometar.io.files import cannot_write_error
from prometar.step.state import State
from prometar.training import session as session_module
from prometar.training.cache import RunCache
from prometar.training.checkpoint import load_checkpoint
from prometar.training.run import Run, build_run
from prometar.training.session import Session
from tests.support.refusals import FAULTS, Fault, RefusingDisk
from tests.support.small import BACKBONE
from tests.support.tiny import backbone
from tune.execution import training
from tune.execution.job import Job
from tune.execution.resources import JobResources
from tune.execution.training import JobTraining
from tune.execution.worker import JobRequest, JobWorker
from tune.records.schema import EpochReport

CONFIG = (
    Config()
    .override({**BACKBONE, "train.epochs": 2, "data.shots": 1, "optim.warmup_epochs": 0})
    .with_defaults()
)

DESCRIBED = dump_config(CONFIG)
HALF = b"half a checkpoint"


class Worker(JobWorker):
    """A trial's worker, without Ray around it."""

    def __init__(self, request: JobRequest) -> None:
        self.setup({"request": request})
        self._has_reported_machine = True

    def open_training(self, request: JobRequest) -> JobTraining:
        return JobTraining(request, RunCache())


def trial(folder: Path) -> list[dict[str, Any]]:
    """What a worker reports of a trial, from its start to its end."""
    try:
        (folder / "trial").mkdir(parents=True, exist_ok=True)
    except OSError as error:  # as the driver, which creates it
        raise cannot_write_error(folder / "trial", error) from None
    resources = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.0)
    job = Job("trial 0", {folder / "trial": CONFIG}, run_folder.FINAL, records_alignment=True)
    worker = Worker(JobRequest(job, resources, resources.bundles(), 600))
    told: list[EpochReport] = []
    try:
        while not told or not told[-1].finished:
            told += [report for report in worker.step().values() if isinstance(report, EpochReport)]
    finally:
        worker.cleanup()
    assert not any(each.error for each in told), "no trial is to blame"
    return [asdict(each) for each in told]


def damaged(folder: Path) -> list[dict[str, Any]]:
    """A trial that finds half of a checkpoint; that is put there before."""
    return trial(folder)


def leave_half(folder: Path) -> None:
    (folder / "trial").mkdir(parents=True, exist_ok=True)
    (folder / "trial/checkpoint.safetensors").write_bytes(HALF)


def trained(folder: Path) -> object:
    """`prometar train`."""
    return run_folder.train_run(
        CONFIG, folder / "run", before_step=AlignmentRecorder(folder / "run", every=2)
    )


COMMANDS: dict[str, Callable[[Path], object]] = {"trial": trial, "damaged": damaged, "train": trained}


@pytest.fixture(scope="module")
def run() -> Run:
    return build_run(CONFIG, run_folder.FINAL)


def described(config: Config) -> str:
    """As `dump_config`, which takes longer than all else of a run here."""
    assert config == CONFIG
    return DESCRIBED


@pytest.fixture
def _formula(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_epoch(run: Run, state: State, batches: object, before_step: Any) -> Any:
        for _ in range(run.order.steps_per_epoch):
            if before_step is not None:
                before_step(run, state, None)
            halves = {name: leaf / 2 + state.step for name, leaf in state.leaves.items()}
            state = replace(state, leaves=halves, step=state.step + 1)
        return state, {"direct_ce": 1.0 / state.step}

    def score(session: Session) -> dict[str, float]:
        value = float(sum(leaf.mean() for leaf in session.state.leaves.values()))
        return {"base": value, "new": value + 1, "objective": value}

    for module in (training, run_folder):
        monkeypatch.setattr(module, "build_run", lambda *_, **__: run)
        monkeypatch.setattr(module, "dump_config", described)
    monkeypatch.setattr(training, "stream", lambda *_, cpus: iter(()))
    monkeypatch.setattr(run_folder, "environment", dict)  # slow, and not to be compared
    monkeypatch.setattr(training, "AlignmentRecorder", partial(AlignmentRecorder, every=2))
    monkeypatch.setattr(alignment, "measure_alignment", lambda _, state, pictures: {"cosine": state.step / 8})
    monkeypatch.setattr(session_module, "train_epoch", train_epoch)
    monkeypatch.setattr(Session, "score", score)


def without_times(found: Any) -> Any:
    """What a run tells or has written, without what differs from machine to machine and from day to day."""
    if isinstance(found, dict):
        left_out = ("seconds", "notes")
        return {key: without_times(value) for key, value in found.items() if key not in left_out}
    return [without_times(each) for each in found] if isinstance(found, list | tuple) else found


def content(path: Path) -> Any:
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.name == "checkpoint.safetensors":
        found = load_checkpoint(path)
        assert found is not None
        tensors = {name: tensor.numpy().tobytes() for name, tensor in found.state.tensors().items()}
        return found.run_digest, found.state.step, tensors, without_times(found.history)
    return path.read_bytes()


def contents(folder: Path) -> dict[str, Any]:
    """All that lies below a folder, hidden files too."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {path.relative_to(folder).as_posix(): content(path) for path in files}


@pytest.mark.usefixtures("_formula")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_write_is_refused_in_turn(
    tmp_path: Path, command: Callable[[Path], object], fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # asked for, and maybe refused: no power fails here
    if command is damaged:
        leave_half(tmp_path / "whole")
    told = without_times(command(tmp_path / "whole"))
    expected = contents(tmp_path / "whole")
    names: set[str] = set()
    for number in range(1, 200):
        folder = tmp_path / f"{number}"
        if command is damaged:
            leave_half(folder)
        with monkeypatch.context() as patch:
            disk = RefusingDisk(tmp_path, patch, fault, number)
            try:
                assert without_times(command(folder)) == told
            except InfrastructureError as error:
                said = str(error)
                assert "\n" not in said
                assert said.startswith("cannot ")
                assert str(tmp_path) in said
                assert fault.reason in said
        if not disk.refused:
            break
        names.add(disk.refused[0][1].lstrip("."))
        for path in folder.rglob("[!.]*"):  # whole as far as it goes, or a run would be told wrong figures
            if path.name in ("result.json", "record.json"):
                assert content(path) == expected[path.relative_to(folder).as_posix()]
            if path.name == "checkpoint.safetensors" and path.read_bytes() != HALF:
                assert load_checkpoint(path) is not None
        assert without_times(command(folder)) == told, disk.refused
        assert contents(folder) == expected, disk.refused
        shutil.rmtree(folder)
    assert number > 12, "each was refused once"
    for name in ("config.yaml", "checkpoint.safetensors", "result.json"):
        assert any(each.startswith(name) for each in names)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_cache_that_cannot_be_written_changes_nothing(
    tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = backbone().clip
    ask = partial(cached_text_features, clip, "digest", tokenize, ["cat", "dog"], ["a photo of a {}."])
    monkeypatch.setenv("PROMETAR_CACHE", str(tmp_path / "whole"))
    whole = ask()
    for number in range(1, 200):
        folder = tmp_path / f"{number}"
        monkeypatch.setenv("PROMETAR_CACHE", str(folder))
        with monkeypatch.context() as patch:
            disk = RefusingDisk(folder, patch, fault, number)
            assert torch.equal(ask(), whole)
        assert torch.equal(ask(), whole), "and nothing of it is taken for an entry"
        if not disk.refused:
            break
    assert number > 3
