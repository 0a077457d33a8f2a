"""Commands with randomly changed files and odd values of options.

Each ends within seconds with a status and a few lines, and writes nothing outside the output folder. Tests
draw the same examples each time. `make fuzz` draws FUZZ_EXAMPLES new ones.
"""

import os
import resource
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prometar.cli.app import main as prometar_main
from prometar.errors import WorkError
from prometar.training.session import Session
from tests.fuzz.mutations import WORDS
from tests.fuzz.targets import TARGETS, Target, write_targets
from tune.config import OPTIONS as STUDY_OPTIONS
from tune.execution import ray_cluster
from tune.search import main as search_main

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
STOPPED = "nothing is trained here"
MAX_SECONDS = 10
"""Limit of a command's processor time."""
MAX_BYTES = 2**30
"""Limit of the memory that a command needs in addition."""
MAX_LINES = 5
"""Limit of the lines on standard error."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the files of all targets."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_targets(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stop each command where it would start Ray or the first epoch."""

    def stop(*_: object, **__: object) -> None:
        raise WorkError(STOPPED)

    monkeypatch.setattr(ray_cluster, "_start", stop)
    monkeypatch.setattr(Session, "run_epoch", stop)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.chdir(tmp_path)


def check_command(
    run: Callable[[], int], capsys: pytest.CaptureFixture[str], unchanged: Path, *, lists_errors: bool = False
) -> None:
    """Run a command, and check that it ends as promised.

    Args:
        run: Function that runs the command and returns its status.
        capsys: Pytest's fixture.
        unchanged: Folder whose files the command must not change.
        lists_errors: True if the command lists all errors of a dataset, which can take many lines.
    """
    before = _sizes_and_times(unchanged)
    start = time.process_time()
    kilobytes_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    status = run()

    seconds = time.process_time() - start
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - kilobytes_before
    error = capsys.readouterr().err
    assert status in (0, 1, 2), status
    assert "Traceback" not in error, error
    assert "Please report it" not in error, error
    if status == 0:
        assert not error
    if status == 2:
        assert error, "the user must learn what is wrong"
    if not lists_errors:
        assert error.count("\n") <= MAX_LINES, error
    assert seconds < MAX_SECONDS
    assert kilobytes * 1024 < MAX_BYTES
    assert _sizes_and_times(unchanged) == before, "an input was changed"


def _sizes_and_times(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and modification time (ns) of all files below a folder. Locks do not count."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "lock":
            status = path.lstat()
            found[path] = (status.st_size, status.st_mtime_ns)
    return found


# New examples only if FUZZ_EXAMPLES is set.
fuzzed = settings(
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
)


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_a_randomly_changed_file_is_read_or_refused_as_promised(
    target: Target, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(folder.glob(target.file))
    contents = {file: file.read_bytes() for file in files}
    assert files
    is_of_a_dataset = target.name.startswith(("image", "split", "manifest", "shard"))

    @settings(fuzzed, max_examples=max(4, int(EXAMPLES * target.share)))
    @given(st.integers(0, 2**32))
    def examples(number: int) -> None:
        rng = Random(number)
        file = rng.choice(files)
        file.write_bytes(target.mutate(contents[file], rng))
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        try:
            check_command(
                lambda: target.read(folder, out), capsys, unchanged=folder, lists_errors=is_of_a_dataset
            )
        finally:
            file.write_bytes(contents[file])

    examples()


SEARCH_OPTIONS = [f"--{name}" for name in STUDY_OPTIONS if name not in ("out", "storage", "address")]
OPTIONS: dict[str, list[str]] = {
    "search": [*SEARCH_OPTIONS, "--set"],
    "train": [
        "--config",
        "--method",
        "--dataset",
        "--data-root",
        "--set",
        "--objective",
        "--alignment-every",
    ],
    "evaluate": ["", "--dataset", "--data-root"],
    "export": ["", "--to"],
    "push": ["", ""],
    "report": [""],
    "compare": ["", "--reference", "--csv"],
    "data check": ["", "--data-root"],
    "data list": ["--data-root"],
}
"""Options of each command that get odd values. "" is an argument without a name."""


def test_a_command_with_one_to_three_odd_values_ends_as_promised(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    @settings(fuzzed, max_examples=EXAMPLES * 3)
    @given(st.integers(0, 2**32))
    def examples(number: int) -> None:
        rng = Random(number)
        name = rng.choice(list(OPTIONS))
        num_values = min(len(OPTIONS[name]), rng.choice((1, 1, 2, 3)))
        words: list[str] = []
        for option in rng.sample(OPTIONS[name], num_values):
            if option:
                words.append(option)
            words.append(rng.choice(WORDS))
        if name == "search":
            run = partial(search_main, ["--out", str(tmp_path / "out"), *words])
        else:
            run = partial(prometar_main, [*name.split(), *words])
        check_command(run, capsys, unchanged=tmp_path / "nothing")

    examples()
