"""Errors of clusters/wait.py before it runs the command of a study."""

import sys

import pytest

from tests.support.shipped import script

MISMATCH = RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n")


@pytest.mark.parametrize(
    ("command", "raised", "code"),
    [
        (
            "nosuchcommand",
            AssertionError("machines were requested"),
            "error: no command 'nosuchcommand' on this machine",
        ),
        (sys.executable, MISMATCH, "error: Version mismatch: The cluster was started with: Ray: 2.59.0"),
        (sys.executable, KeyboardInterrupt(), 130),
        (sys.executable, TimeoutError("0 of 1 CPUs"), "error: 0 of 1 CPUs"),
    ],
)
def test_errors_while_waiting_determine_the_exit_status(
    monkeypatch: pytest.MonkeyPatch, command: str, raised: BaseException, code: object
) -> None:
    module = script("wait")

    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(module, "wait", fail)
    monkeypatch.setattr(sys, "argv", ["wait.py", "--cpus", "1", "--", command])
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == code


@pytest.mark.parametrize("option", ["--cpus=-1", "--gpus=-1", "--minutes=nan", "--minutes=inf"])
def test_negative_and_infinite_numbers_are_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script("wait").parse([option, "--", "python"])
    assert "--cpus, --gpus and --minutes must be finite and at least 0" in capsys.readouterr().err
