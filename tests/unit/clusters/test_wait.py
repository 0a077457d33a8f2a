"""Errors of clusters/wait.py before it runs the command of a study."""

import sys

import pytest

from tests.support.shipped import script

MISMATCH = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n")
"""The error of Ray if the cluster has another version. It has several lines, but the script prints one."""


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        pytest.param(
            MISMATCH,
            "error: Version mismatch: The cluster was started with: Ray: 2.59.0",
            id="another version of Ray",
        ),
        pytest.param(KeyboardInterrupt(), 130, id="Ctrl-C"),
        pytest.param(TimeoutError("0 of 1 CPUs"), "error: 0 of 1 CPUs", id="timeout"),
    ],
)
def test_errors_while_waiting_determine_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, raised: BaseException, code: object
) -> None:
    assert exit_code(monkeypatch, sys.executable, raised) == code


def test_a_command_that_does_not_exist_is_refused_before_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = AssertionError("machines were requested")
    code = exit_code(monkeypatch, "nosuchcommand", waited)
    assert code == "error: no command 'nosuchcommand' on this machine"


def exit_code(monkeypatch: pytest.MonkeyPatch, command: str, raised: BaseException) -> object:
    """Return the exit status, or the error message, of the script if its function `wait` raises an error."""
    module = script("wait")

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(module, "wait", fail)
    monkeypatch.setattr(sys, "argv", ["wait.py", "--cpus", "1", "--", command])
    with pytest.raises(SystemExit) as ended:
        module.main()
    return ended.value.code


@pytest.mark.parametrize("option", ["--cpus=-1", "--gpus=-1", "--minutes=nan", "--minutes=inf"])
def test_negative_and_infinite_numbers_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("wait").parse([option, "--", "python"])
    assert "--cpus, --gpus and --minutes must be finite and at least 0" in capsys.readouterr().err
