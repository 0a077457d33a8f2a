"""Ctrl-C while a command still imports: one line and status 130, and nothing begun."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prometar import interrupts
from prometar.interrupts import INTERRUPTED, end_at_once, raise_again

ROOT = Path(__file__).parents[2]
WHILE_IMPORTED = """
import os, runpy, signal, sys

class Interrupted:
    def find_spec(self, name, *_):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
sys.meta_path.insert(0, Interrupted())
sys.argv = ["command", *{words!r}]
runpy.{how}
"""
PROMETAR, SEARCH = 'run_module("prometar", run_name="__main__")', 'run_path("{}", run_name="__main__")'


@pytest.mark.parametrize("module", ["typer", "pydantic", "rich.console"])
@pytest.mark.parametrize(
    ("how", "words"),
    [
        (PROMETAR, ["train", "--out", "out"]),
        (PROMETAR, ["data", "list"]),
        (SEARCH.format(ROOT / "tune/search.py"), ["--trials", "1"]),
    ],
)
def test_an_interrupt_amid_imports(how: str, words: list[str], module: str, tmp_path: Path) -> None:
    code = WHILE_IMPORTED.format(module=module, words=words, how=how)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == INTERRUPTED
    assert done.stderr == "error: interrupted; the same command goes on from here\n"
    assert not list(tmp_path.iterdir())


def test_a_command_that_has_begun_cleans_up() -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_at_once()
        assert signal.getsignal(signal.SIGINT) is interrupts._end
        raise_again()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a shell's background
        end_at_once()
        raise_again()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
