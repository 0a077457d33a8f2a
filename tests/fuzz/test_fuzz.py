"""Changed files and odd values: a status, a few lines, nothing outside the output, in seconds.

`make fuzz` tries FUZZ_EXAMPLES other examples.
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
from tests.fuzz.targets import TARGETS, Target, furnish
from tune.config import OPTIONS as STUDY_OPTIONS
from tune.execution import ray_cluster
from tune.search import main as search_main

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "20"))
STOPPED = "nothing is trained here"
MOST_SECONDS = 10
MOST_BYTES = 2**30
MOST_LINES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    furnish(made)
    return made


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command gets as far as Ray's start or the first epoch, and no further."""

    def stop(*_: object, **__: object) -> None:
        raise WorkError(STOPPED)

    monkeypatch.setattr(ray_cluster, "_start", stop)
    monkeypatch.setattr(Session, "run_epoch", stop)
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.chdir(tmp_path)


def look(name: str, run: Callable[[], int], capsys: pytest.CaptureFixture[str], unchanged: Path) -> None:
    """Run, and hold the promise."""
    before = _stamps(unchanged)
    started = time.process_time()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = run()
    seconds = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024
    error = capsys.readouterr().err
    assert status in (0, 1, 2), status
    assert "Traceback" not in error, error
    assert "Please report it" not in error, error
    assert bool(error) == (status != 0) or status == 1, error
    if not name.startswith(("image", "split", "manifest", "shard")):  # `data check` lists what it finds
        assert error.count("\n") <= MOST_LINES, error
    assert seconds < MOST_SECONDS
    assert grown < MOST_BYTES
    assert _stamps(unchanged) == before, "an input was changed"


def _stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    return {
        path: (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


fuzzed = settings(
    deadline=None,
    database=None,
    print_blob=False,
    suppress_health_check=list(HealthCheck),
    derandomize="FUZZ_EXAMPLES" not in os.environ,
)


@pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])
def test_changes(target: Target, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(folder.glob(target.file))
    whole = {file: file.read_bytes() for file in files}
    assert files

    @settings(fuzzed, max_examples=max(4, int(EXAMPLES * target.share)))
    @given(st.integers(0, 2**32))
    def examples(number: int) -> None:
        rng = Random(number)
        file = rng.choice(files)
        file.write_bytes(target.mutate(whole[file], rng))
        out = tmp_path / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        try:
            look(target.name, lambda: target.read(folder, out), capsys, folder)
        finally:
            file.write_bytes(whole[file])

    examples()


OPTIONS: dict[str, list[str]] = {
    "search": [
        *(f"--{name}" for name in STUDY_OPTIONS if name not in ("out", "storage", "address")),
        "--set",
    ],
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


def test_odd_values(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """One command with one to three odd values."""

    @settings(fuzzed, max_examples=EXAMPLES * 3)
    @given(st.integers(0, 2**32))
    def examples(number: int) -> None:
        rng = Random(number)
        name = rng.choice(list(OPTIONS))
        words: list[str] = []
        for option in rng.sample(OPTIONS[name], min(len(OPTIONS[name]), rng.choice((1, 1, 2, 3)))):
            words += [option] * bool(option) + [rng.choice(WORDS)]
        out = ["--out", str(tmp_path / "out")]
        run = (
            partial(search_main, [*out, *words])
            if name == "search"
            else partial(prometar_main, [*name.split(), *words])
        )
        look(name, run, capsys, tmp_path / "nothing")

    examples()
