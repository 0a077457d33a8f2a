"""Drives a fake study, also as a process that tests can kill: `python -m tests.support.driver OUT [...]`."""

import gc

if __name__ == "__main__":  # as a study's own process does while it loads
    gc.disable()

import argparse
import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import optuna.storages._in_memory as in_memory
from rich.console import Console
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from prometar.cli.console import INTERRUPTED
from prometar.config.settings import Config
from prometar.distributed.placement import Shares
from prometar.errors import UserError
from prometar.io.files import beside, write_atomically
from tests.support.fake_trial import BEHAVIOUR, HANGS, FakeTrial
from tests.support.processes import ROOT, session
from tune.results.writer import StudyFolder
from tune.space.spaces import parse_space
from tune.study import Place, run_study
from tune.study_spec import StudySpec

NAME = "fake"
SPACE = """
regularizer.kind: {type: choice, choices: [l1, l2, cosine, none]}
regularizer.text_weight: {type: float, low: 0.5, high: 200, log: true}
regularizer.image_weight: {type: float, low: 0.2, high: 100, log: true}
"""


def small_spec(
    *, trials: int = 4, epochs: int = 3, seed: int = 3, final_seeds: tuple[int, ...] = (), **changes: Any
) -> StudySpec:
    """A study over three settings; more by StudySpec's names."""
    given: dict[str, Any] = {
        "config": Config().override({"train.epochs": epochs, "train.seed": seed}),
        "space": parse_space("small", SPACE),
        "objective": "drift",
        "seed": seed,
        "pruner": "none",
        "val_per_class": 20,
        "trials": trials,
        "final_seeds": final_seeds,
        "top": 0,
    }
    return StudySpec(**{**given, **changes})


def misbehave(out: Path, behaviour: dict[str, str]) -> None:
    """Tell the trials of OUT/fake how to behave."""
    write_atomically(StudyFolder(out, NAME) / BEHAVIOUR, json.dumps(behaviour).encode())


def run_fake(
    out: Path,
    spec: StudySpec,
    *,
    behaviour: dict[str, str] | None = None,
    trainable: type[FakeTrial] = FakeTrial,
    **place: Any,
) -> tuple[dict[str, Any], str]:
    """A study of the fake trial in OUT/fake. Returns finals.json's content and what was printed.

    By default one trial at a time: a second worker costs two seconds of a core, and its trials none.
    """
    if behaviour is not None:
        misbehave(out, behaviour)
    text = io.StringIO()
    _run(out, spec, text, trainable, **{"max_concurrent": 1, **place})
    return json.loads((out / NAME / "finals.json").read_text()), text.getvalue()


def _run(
    out: Path, spec: StudySpec, shown: TextIO, trainable: type[FakeTrial] = FakeTrial, **place: Any
) -> None:
    console = Console(file=shown, width=200, soft_wrap=True)
    # No trial reads an image, and who keeps them for all is a process more.
    with mock.patch("tune.study.shared_images", contextlib.nullcontext):
        given = {key: place.pop(key) for key in ("max_concurrent", "cpus") if key in place}
        asked = Place(out=out, name=NAME, shares=Shares(**given), **place)
        run_study(spec, asked, trainable=trainable, console=console)


def records(out: Path) -> list[dict[str, Any]]:
    """All records of OUT/fake, by number."""
    files = sorted((out / NAME / "trials").glob("*/record.json"))
    return [json.loads(file.read_text()) for file in files]


class Driver:
    """A driver in a session of its own, so that it can be ended with all of its Ray.

    As a context it leaves nothing of that behind.
    """

    entry: tuple[str, ...] = ("-m", "tests.support.driver")
    """What Python is given before OUT and the options."""

    def __init__(self, out: Path, *options: object, env: dict[str, str] | None = None) -> None:
        self.folder = out / NAME
        command = [sys.executable, *self.entry, str(out), *map(str, options)]
        out.mkdir(parents=True, exist_ok=True)
        printed, self._printed = tempfile.mkstemp(".log", "driver-", dir=out)
        with open(printed, "w") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=env,
                start_new_session=True,
                stdout=log,
                stderr=subprocess.PIPE,
                text=True,
            )

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def said(self) -> str:
        """What it has printed so far."""
        return Path(self._printed).read_text()

    def wait_until(self, condition: Callable[[], Any], timeout_seconds: float = 400) -> None:
        end = time.monotonic() + timeout_seconds
        while not condition():
            assert self.process.poll() is None, f"the driver ended by itself: {self.errors()}"
            assert time.monotonic() < end, f"the driver made no progress: {self.said()}"
            time.sleep(0.02)

    def errors(self) -> str:
        """What it said on stderr, once it has ended."""
        self.wait()  # what it left of Ray holds the pipe too
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def kill(self) -> int:
        """kill -9 of the driver alone, which leaves its Ray to itself. Returns its status."""
        self.process.kill()
        return self.process.wait()

    def end(self, sig: signal.Signals) -> int:
        """Send a signal to the driver alone; what it leaves of Ray is ended too. Returns its status."""
        self.process.send_signal(sig)
        return self.wait()

    def wait(self, timeout_seconds: float = 600) -> int:
        """Its status, once it has ended; what it leaves of Ray is ended too."""
        try:
            return self.process.wait(timeout=timeout_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for pid in session(self.process.pid):  # Ray's workers have groups of their own
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def forget_hanging(out: Path, timeout_seconds: float = 400) -> None:
    """Wait until the workers of OUT/fake that were told to hang have ended, and forget them.

    A Ray that outlives a driver ends its workers soon, but not at once.
    """
    end = time.monotonic() + timeout_seconds
    for told in (out / NAME).glob(f"*/*/{HANGS}"):
        while _lives(int(told.read_text())):
            assert time.monotonic() < end, f"a worker of no driver still runs: {told}"
            time.sleep(0.02)
        told.unlink()


def _lives(pid: int) -> bool:
    """Whether a process runs, and has not just to be collected (on Linux; elsewhere none is seen)."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def trial_workers(leader: int) -> list[int]:
    """Ray's workers in a session that trials run in."""
    found = []
    for pid in session(leader):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_text()
            if re.match(r"ray::(\w*Trial|ResourceTrainable)", title):
                found.append(pid)
    return found


def _parse(options: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--pruner", default="none")
    parser.add_argument("--top", type=int, default=0)
    parser.add_argument("--final-seeds", type=int, nargs="*", default=())
    parser.add_argument("--max-concurrent", type=int)
    parser.add_argument("--address")
    parser.add_argument("--storage")
    parser.add_argument("--die-in-report", action="store_true")
    parser.add_argument("--flaky", type=int, help="one statement in fifty fails in the database; a seed")
    parser.add_argument("--set-back", action="store_true", help="the clock, an hour after three looks at it")
    return parser.parse_args(options)


def spec_of(*options: object) -> StudySpec:
    """What a driver with these options is asked for."""
    return _spec(_parse(["unused", *map(str, options)]))


def _spec(given: argparse.Namespace) -> StudySpec:
    return small_spec(
        trials=given.trials,
        seed=given.seed,
        sampler=given.sampler,
        pruner=given.pruner,
        top=given.top,
        final_seeds=tuple(given.final_seeds),
    )


def main(options: Sequence[str]) -> int:
    gc.freeze()
    gc.enable()
    given = _parse(options)
    # A shell starts its background jobs, and so their children, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.die_in_report:
        _die_in_report()
    if given.flaky is not None:
        fail_one_in_fifty(random.Random(given.flaky))
    if given.set_back:
        in_memory.datetime = Back  # type: ignore[attr-defined]
    place = {key: getattr(given, key) for key in ("max_concurrent", "address", "storage")}
    try:
        _run(given.out, _spec(given), sys.stdout, **place)
    except KeyboardInterrupt:
        return INTERRUPTED
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def fail_one_in_fifty(draw: random.Random) -> Callable[..., None]:
    """Have statements fail in every database of this process. Returns the listener, for its removal."""

    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if draw.random() < 1 / 50:
            raise OperationalError(statement, {}, Exception("disk I/O error"))

    event.listen(Engine, "before_cursor_execute", fail)
    return fail


class Back(datetime):
    """The moments of trials, by a clock that is set back by an hour after three looks at it."""

    looks = 0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        cls.looks += 1
        return datetime.now(tz) - timedelta(hours=cls.looks > 3)  # amid the second trial


def _die_in_report() -> None:
    """Killed when half of the report has been written, before it is in place."""
    from tune.reporting import html

    def half(path: Path, content: bytes) -> None:
        path.with_name(beside(path.name)).write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    html.write_atomically = half  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
