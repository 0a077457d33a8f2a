"""Commands report errors in one line, release what an error holds, and refuse options that have no effect."""

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
    """Run a function as a command. Return its exit status."""
    app = typer.Typer()
    app.command()(command)
    return run_cli(app, [])


def report_of(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return the exit status of a command that raises an error, and what it prints on stderr."""

    def command() -> None:
        raise error

    status = run(command)
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        pytest.param(
            UserError("wrong\nin two lines"), 2, "error: wrong in two lines\n", id="message with two lines"
        ),
        pytest.param(
            PermissionError(13, "Permission denied", "a/b"),
            1,
            "error: Permission denied: a/b\n",
            id="error of the system",
        ),
        pytest.param(MemoryError(), 1, "error: Out of memory.\n", id="memory"),
        pytest.param(
            torch.OutOfMemoryError("CUDA out of memory. More."),
            1,
            "error: CUDA out of memory. More.\n",
            id="memory of the GPU",
        ),
        pytest.param(
            torch.AcceleratorError("CUDA error: device(s) busy or unavailable\nSearch for `cudaError'"),
            1,
            "error: CUDA error: device(s) busy or unavailable\n",
            id="GPU in use",
        ),
        pytest.param(
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `a`"),
            1,
            "error: CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `a`\n",
            id="GPU library",
        ),
        pytest.param(
            KeyboardInterrupt(),
            130,
            "error: Interrupted. Rerun the same command to resume.\n",
            id="interrupt",
        ),
        pytest.param(
            TypeError("an int\nmore"),
            1,
            "error: Unexpected TypeError: an int. Please report it with the traceback "
            "(PROMETAR_TRACEBACK=1).\n",
            id="unexpected error",
        ),
        pytest.param(
            RecursionError(),
            1,
            "error: Unexpected RecursionError. Please",
            id="unexpected error without a message",
        ),
        pytest.param(UserError("name \ud800"), 2, "error: name \\ud800\n", id="unpaired surrogate"),
        pytest.param(UserError("red \x1b[31m\r"), 2, "error: red \\x1b[31m\\r\n", id="control characters"),
    ],
)
def test_every_error_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found, text = report_of(error, capsys)
    assert found == status
    assert text.startswith(line)
    assert text.count("\n") == 1


def test_the_error_of_a_truncated_file_is_not_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = report_of(EOFError("marshal data too short"), capsys)
    assert status == 1
    assert text.lstrip().startswith("error: Unexpected EOFError: marshal data too short. Please report it")


def test_sigterm_interrupts_a_command_whatever_the_handler_was(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        assert run(lambda: signal.raise_signal(signal.SIGTERM)) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert capsys.readouterr().err == "error: Interrupted. Rerun the same command to resume.\n"


def test_the_traceback_of_an_unexpected_error_is_shown_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(console.TRACEBACK_VARIABLE, "1")
    _, text = report_of(TypeError("x"), capsys)
    assert "Traceback" in text


@pytest.mark.parametrize("kind", [UserError, TypeError])
def test_a_stream_that_an_error_has_left_open_is_closed_at_once(kind: type[Exception]) -> None:
    """A stream of Ray Data that is closed only after Ray has shut down would start Ray again."""
    closed: list[bool] = []
    kept: list[Exception] = []

    def stream() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            closed.append(True)

    def command() -> None:
        for _ in stream():
            error = kind("broken")
            kept.append(error)  # the error, whose frames hold the stream, outlives the command
            raise error

    assert run(command) in (1, 2)
    assert closed == [True]


def test_names_are_escaped_if_the_terminal_prints_only_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    assert run(lambda: print("Größe")) == 0
    assert raw.getvalue() == b"Gr\\xf6\\xdfe\n"


def test_a_closed_pipe_ends_a_command_without_a_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed_pipe:
        monkeypatch.setattr("sys.stdout", closed_pipe)
        # More than the buffer holds, so that the command itself writes to the pipe.
        assert run(lambda: print("x" * 100_000)) == 1
    assert capsys.readouterr().err == ""


def test_output_to_a_full_disk_fails_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert run(lambda: print("x")) == 1
        # Closing the file writes its buffer, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    assert capsys.readouterr().err == "error: No space left on device\n"


@pytest.mark.parametrize("group", [[], ["data"]], ids=["prometar", "data"])
def test_help_shows_the_whole_first_sentence_of_each_command(
    group: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*group, "--help"]) == 0
    commands = capsys.readouterr().out.split("Commands:\n")[1]
    assert "..." not in commands  # typer cuts sentences that do not fit


@pytest.mark.parametrize("group", [[], ["data"]], ids=["prometar", "data"])
def test_a_group_without_a_command_shows_its_help_on_stderr(
    group: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main([*group, "--help"])
    shown = capsys.readouterr().out

    assert main(group) == 2
    assert capsys.readouterr() == ("", shown)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"prometar {__version__}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        pytest.param(
            ["--config", "{}"],
            "--config {} is a folder. Pass a file, such as best.yaml",
            id="folder without a configuration",
        ),
        pytest.param(
            ["--config", "{}/study"],
            "is a folder. Pass --config {}/study/best.yaml.",
            id="folder of a study",
        ),
        pytest.param(
            ["--data-root", "{}"],
            "--data-root does not apply to cells, whose images are",
            id="data root of the default dataset",
        ),
        pytest.param(
            ["--dataset", "textures", "--data-root", "{}"],
            "own images, use the dataset `folder`.",
            id="data root of a rendered dataset",
        ),
    ],
)
def test_a_mistake_in_the_command_train_says_what_to_do(
    args: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`{}` stands for a folder that contains the folder of a study."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study/best.yaml").write_text("")

    assert main(["train", *(arg.format(tmp_path) for arg in args)]) == 2
    assert message.format(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["train", "--epochs", "1"], "No such option: --epochs. Use --set train.epochs=VALUE.\n"),
        (["train", "--batch-size=8"], "--batch-size. Use --set train.batch_size=VALUE.\n"),
        (["train", "--lr", "1"], "Use --set inner.lr=VALUE or --set optim.lr=VALUE.\n"),
        (["train", "--nonsense", "1"], "No such option: --nonsense\n"),
        (["search", "--epochs"], "Option '--epochs' requires an argument.\n"),
        (["export", "--epochs", "1"], "No such option: --epochs\n"),
    ],
    ids=["setting", "two words", "two settings", "no setting", "known option", "command without --set"],
)
def test_an_unknown_option_with_the_name_of_a_setting_says_how_to_change_the_setting(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    assert capsys.readouterr().err.endswith(message)


def test_an_unknown_objective_is_refused_without_importing_torch() -> None:
    """The import takes seconds."""
    code = """
import sys
from prometar.cli.app import main
status = main(["train", "--objective", "nothing"])
print(status, "torch" in sys.modules)
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.split() == ["2", "False"]
    assert "nothing" in process.stderr


@pytest.mark.parametrize(
    "command",
    [["evaluate", ".", "--dataset", "cells"], ["data", "check", "cells"]],
    ids=["evaluate", "data check"],
)
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
    options = ["--set", "train.epochs=3", "optim.lr=0.5", "--dataset", "cells", "--set", "data.shots=2"]
    assert main(["train", *options]) == 2

    (config,) = trained
    assert config.train.epochs == 3
    assert config.optim.lr == 0.5
    assert config.data.shots == 2
