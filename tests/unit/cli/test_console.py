"""No error leaves a command: each is one line, and what its frames hold is let go of."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import typer

from prometar import __version__
from prometar.cli import console
from prometar.cli.app import main
from prometar.cli.console import run_cli
from prometar.config.settings import Config
from prometar.errors import UserError


def run(command: Callable[[], object]) -> int:
    app = typer.Typer()
    app.command()(command)
    return run_cli(app, [])


def said(capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    def command() -> None:
        raise error

    status = run(command)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("wrong\nin two lines"), 2, "error: wrong in two lines\n"),
        (PermissionError(13, "Permission denied", "a/b"), 1, "error: Permission denied: a/b\n"),
        (MemoryError(), 1, "error: Out of memory.\n"),
        (torch.OutOfMemoryError("CUDA out of memory. More."), 1, "error: CUDA out of memory. More.\n"),
        (
            torch.AcceleratorError("CUDA error: device(s) busy or unavailable\nSearch for `cudaError'"),
            1,
            "error: CUDA error: device(s) busy or unavailable\n",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `a`"),
            1,
            "error: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `a`\n",
        ),
        (KeyboardInterrupt(), 130, "error: Interrupted. Rerun the same command to resume.\n"),
        (
            TypeError("an int\nmore"),
            1,
            "error: Unexpected TypeError: an int. Please report it with the traceback "
            "(PROMETAR_TRACEBACK=1).\n",
        ),
        (RecursionError(), 1, "error: Unexpected RecursionError. Please"),
        (UserError("name \ud800"), 2, "error: name \\ud800\n"),
        (UserError("red \x1b[31m\r"), 2, "error: red \\x1b[31m\\r\n"),
    ],
)
def test_every_error_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = said(capsys, error)
    assert found == status
    assert text.startswith(line)
    assert text.count("\n") == 1


def test_the_error_of_a_truncated_file_is_not_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = said(capsys, EOFError("marshal data too short"))
    assert status == 1
    assert text.lstrip().startswith("error: Unexpected EOFError: marshal data too short. Please report it")


def test_sigterm_is_an_interrupt_from_a_commands_first_moment_on(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert run(lambda: signal.raise_signal(signal.SIGTERM)) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: Interrupted. Rerun the same command to resume.\n"


def test_a_mistake_of_ours_shows_where_it_came_from(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(console.TRACEBACK_VARIABLE, "1")
    assert "Traceback" in said(capsys, TypeError("x"))[1]


@pytest.mark.parametrize("kind", [UserError, TypeError])
def test_a_stream_that_an_error_has_left_open_is_closed_at_once(kind: type[Exception]) -> None:
    """Later Ray would be down, and the end of a stream of its would start another one."""
    closed = []
    kept = []

    def stream() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    def command() -> None:
        for _ in stream():
            error = kind("broken")
            kept.append(error)  # as whoever looks at the last error later
            raise error

    assert run(command) in (1, 2)
    assert closed == [True]


def test_names_are_printed_where_only_ascii_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run(lambda: print("Größe")) == 0
    assert raw.getvalue() == b"Gr\\xf6\\xdfe\n"


def test_a_reader_that_has_gone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone:
        monkeypatch.setattr("sys.stdout", gone)
        assert run(lambda: print("x" * 100_000)) == 1
    assert capsys.readouterr().err == ""


def test_output_to_a_full_disk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert run(lambda: print("x")) == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert capsys.readouterr().err == "error: No space left on device\n"


@pytest.mark.parametrize("group", [[], ["data"]], ids=["prometar", "data"])
def test_a_group_of_commands_shows_its_help(group: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """In lines, with the whole first sentence of each command in 80 columns."""
    from prometar.cli.app import main

    assert main([*group, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "..." not in shown.split("Commands:\n")[1]
    assert main(group) == 2
    assert capsys.readouterr() == ("", shown)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prometar {__version__}\n"


TRAIN_MISTAKES = {
    "a folder without a configuration": (
        ["--config", "{}"],
        "--config {} is a folder. Pass a file, such as best.yaml",
    ),
    "a study's folder": (["--config", "{}/study"], "is a folder. Pass --config {}/study/best.yaml."),
    "the default dataset": (["--data-root", "{}"], "--data-root does not apply to cells, whose images are"),
    "a rendered dataset": (
        ["--dataset", "textures", "--data-root", "{}"],
        "own images, add --dataset folder.",
    ),
}


@pytest.mark.parametrize(("args", "message"), TRAIN_MISTAKES.values(), ids=TRAIN_MISTAKES.keys())
def test_a_mistake_in_the_command_train_says_what_to_do(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "study").mkdir()
    (tmp_path / "study/best.yaml").write_text("")
    assert main(["train", *(arg.format(tmp_path) for arg in args)]) == 2
    assert message.format(tmp_path) in capsys.readouterr().err


def test_an_unknown_objective_is_refused_without_importing_torch() -> None:
    """The import takes seconds."""
    code = (
        "import sys; from prometar.cli.app import main; "
        "print(main(['train', '--objective', 'nothing']), 'torch' in sys.modules)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["2", "False"]
    assert "nothing" in process.stderr


@pytest.mark.parametrize("command", [["evaluate", ".", "--dataset", "cells"], ["data", "check", "cells"]])
def test_a_data_root_that_a_command_would_ignore_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--data-root", str(tmp_path)]) == 2
    assert "--data-root does not apply to cells" in capsys.readouterr().err


def test_train_names_the_classes_of_the_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prompts that were trained on half of the classes are easily taken for a classifier of all."""
    settings = ["--method", "zero-shot", "--set", "data.shots=1", "--set", "train.epochs=1"]
    assert main(["train", *settings, "--out", str(tmp_path)]) == 0
    names = "amoeba, bacillus, coccus, diatom, erythrocyte"
    expected = f"Trained on these classes: {names}. To train on all: --objective all_classes\n"
    assert expected in capsys.readouterr().out


def test_set_accepts_several_values_and_may_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Config] = []

    def stop(config: Config, *args: object, **options: object) -> None:
        trained.append(config)
        raise UserError("stopped before training")

    monkeypatch.setattr("prometar.run_folder.train_run", stop)
    values = ["--set", "train.epochs=3", "optim.lr=0.5", "--dataset", "cells", "--set", "data.shots=2"]
    assert main(["train", *values]) == 2
    [config] = trained
    assert (config.train.epochs, config.optim.lr, config.data.shots) == (3, 0.5, 2)
