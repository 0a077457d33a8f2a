"""Commands on a disk that refuses one of their writes: the first one, then the second one, and so on.

Each refusal ends the command with one line. No half-written file is used, and the same command resumes. To
save time, no run trains. Its numbers follow from a formula, but it writes its files as a real run does.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
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

CONFIG_TEXT = dump_config(CONFIG)
HALF = b"half a checkpoint"
MAX_WRITES = 200
"""Number of writes that no command reaches."""


class Worker(JobWorker):
    """Worker in this process instead of an actor of Ray."""

    def __init__(self, request: JobRequest) -> None:
        self.setup({"request": request})
        self._has_reported_machine = True

    def open_training(self, request: JobRequest) -> JobTraining:
        return JobTraining(request, RunCache())


def trial(folder: Path) -> list[dict[str, Any]]:
    """Run a trial in FOLDER/trial. Return its reports."""
    try:
        (folder / "trial").mkdir(parents=True, exist_ok=True)
    except OSError as error:  # as in the driver, which creates the folder
        raise cannot_write_error(folder / "trial", error) from None
    resources = JobResources(num_concurrent=1, max_concurrent=1, cpus=1.0, gpus=0.0)
    job = Job("trial 0", {folder / "trial": CONFIG}, run_folder.FINAL, records_alignment=True)
    worker = Worker(JobRequest(job, resources, resources.bundles(), 600))
    reports: list[EpochReport] = []
    try:
        while not reports or not reports[-1].finished:
            results = worker.step().values()
            reports += [report for report in results if isinstance(report, EpochReport)]
    finally:
        worker.cleanup()
    assert not any(report.error for report in reports), "a refused write is no failure of the trial"
    return [asdict(report) for report in reports]


def write_half_checkpoint(folder: Path) -> None:
    """Write half of a checkpoint into FOLDER/trial."""
    (folder / "trial").mkdir(parents=True, exist_ok=True)
    (folder / "trial/checkpoint.safetensors").write_bytes(HALF)


def train(folder: Path) -> object:
    """Train a run in FOLDER/run, as `prometar train` does. Return its last record."""
    recorder = AlignmentRecorder(folder / "run", every=2)
    return run_folder.train_run(CONFIG, folder / "run", before_step=recorder)


def do_nothing(folder: Path) -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Command:
    """A command that writes below a folder.

    Args:
        call: Function that runs the command in a folder. It returns what the command reports.
        prepare: Function that prepares the folder before the first call.
    """

    call: Callable[[Path], object]
    prepare: Callable[[Path], None] = do_nothing


COMMANDS = {
    "trial": Command(trial),
    "damaged": Command(trial, write_half_checkpoint),
    "train": Command(train),
}


@pytest.fixture(scope="module")
def run() -> Run:
    """The run of all tests, which is built only once."""
    return build_run(CONFIG, run_folder.FINAL)


def known_text(config: Config) -> str:
    """Return the text of `CONFIG`. It replaces `dump_config`, which takes longer than the rest of a run."""
    assert config == CONFIG
    return CONFIG_TEXT


@pytest.fixture
def _formula(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace everything that takes long: training and scoring by formulas, and descriptions by constants."""

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
        monkeypatch.setattr(module, "dump_config", known_text)
    monkeypatch.setattr(training, "stream", lambda *_, cpus: iter(()))
    monkeypatch.setattr(run_folder, "environment", dict)
    monkeypatch.setattr(training, "AlignmentRecorder", partial(AlignmentRecorder, every=2))
    monkeypatch.setattr(alignment, "measure_alignment", lambda _, state, pictures: {"cosine": state.step / 8})
    monkeypatch.setattr(session_module, "train_epoch", train_epoch)
    monkeypatch.setattr(Session, "score", score)


def without_times(tree: Any) -> Any:
    """Return records without times and notes, which differ between equal runs. Tuples become lists."""
    if isinstance(tree, dict):
        left_out = ("seconds", "notes")
        return {key: without_times(value) for key, value in tree.items() if key not in left_out}
    if isinstance(tree, list | tuple):
        return [without_times(item) for item in tree]
    return tree


def content(path: Path) -> Any:
    """Return the content of a file without times."""
    if path.suffix == ".json":
        return without_times(json.loads(path.read_text()))
    if path.name == "checkpoint.safetensors":
        checkpoint = load_checkpoint(path)
        assert checkpoint is not None
        state = checkpoint.state
        tensors = {name: tensor.numpy().tobytes() for name, tensor in state.tensors().items()}
        return checkpoint.run_digest, state.step, tensors, without_times(checkpoint.history)
    return path.read_bytes()


def contents(folder: Path) -> dict[str, Any]:
    """Return the contents of all files below a folder except locks, by path. Hidden files are included."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {path.relative_to(folder).as_posix(): content(path) for path in files}


@pytest.mark.usefixtures("_formula")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_command_resumes_after_any_of_its_writes_was_refused(
    tmp_path: Path, command: Command, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "machine"))
    # `fsync` need not wait for the disk, because this test is not about power failures.
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    undisturbed = tmp_path / "undisturbed"
    command.prepare(undisturbed)
    expected_answer = without_times(command.call(undisturbed))
    expected_contents = contents(undisturbed)

    refused_files: set[str] = set()
    for number in range(1, MAX_WRITES):
        folder = tmp_path / f"{number}"
        command.prepare(folder)
        with monkeypatch.context() as patch:
            disk = RefusingDisk(tmp_path, patch, fault, number)
            try:
                assert without_times(command.call(folder)) == expected_answer
            except InfrastructureError as error:
                require_one_line(error, fault, tmp_path)
        if not disk.refused:
            break  # the command has fewer writes than `number`

        _, refused_file = disk.refused[0]
        refused_files.add(refused_file.lstrip("."))
        require_whole_files(folder, expected_contents)

        # The same command resumes on a disk that refuses nothing.
        assert without_times(command.call(folder)) == expected_answer, disk.refused
        assert contents(folder) == expected_contents, disk.refused
        shutil.rmtree(folder)

    assert number > 12, "a command has at least a dozen writes"
    for name in ("config.yaml", "checkpoint.safetensors", "result.json"):
        assert any(file.startswith(name) for file in refused_files)


def require_one_line(error: InfrastructureError, fault: Fault, folder: Path) -> None:
    """Check that the message of an error is one line, which names a file below `folder` and the reason."""
    message = str(error)
    assert "\n" not in message
    assert message.startswith("cannot ")
    assert str(folder) in message
    assert fault.reason in message


def require_whole_files(folder: Path, expected: dict[str, Any]) -> None:
    """Check that all results below a folder are as expected, and that all new checkpoints can be read."""
    for path in folder.rglob("[!.]*"):
        if path.name in ("result.json", "record.json"):
            assert content(path) == expected[path.relative_to(folder).as_posix()]
        if path.name == "checkpoint.safetensors" and path.read_bytes() != HALF:
            assert load_checkpoint(path) is not None


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_cache_of_text_features_that_cannot_be_written_changes_nothing(
    tmp_path: Path, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = backbone().clip
    features = partial(cached_text_features, clip, "digest", tokenize, ["cat", "dog"], ["a photo of a {}."])
    monkeypatch.setenv("PROMETAR_CACHE", str(tmp_path / "whole"))
    expected = features()

    for number in range(1, MAX_WRITES):
        folder = tmp_path / f"{number}"
        monkeypatch.setenv("PROMETAR_CACHE", str(folder))
        with monkeypatch.context() as patch:
            disk = RefusingDisk(folder, patch, fault, number)
            assert torch.equal(features(), expected)
        assert torch.equal(features(), expected), "no half-written entry is used"
        if not disk.refused:
            break  # an entry has fewer writes than `number`

    assert number > 3, "an entry has at least three writes"
