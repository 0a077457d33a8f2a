"""A study whose trials do not train, in this process or in a driver that tests can kill.

The driver is the process `python -m tests.support.driver OUT [options]`.
"""

import gc
import sys

if __name__ == "__main__":
    gc.disable()  # as the process of a study does while it imports
    from tune.execution.ray_cluster import configure_ray

    configure_ray(local="--address" not in sys.argv)  # before ray is imported

import argparse
import contextlib
import io
import itertools
import json
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, TextIO
from unittest import mock

import optuna.storages._rdb.storage as rdb
from rich.console import Console
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from prometar.errors import PrometarError
from prometar.io.yamltext import parse_yaml
from tests.support.fake_trial import HANGS, FakeTraining, FakeTrial
from tests.support.fake_trial import misbehave as _misbehave
from tests.support.processes import ROOT, session
from tune.config import StudyConfig
from tune.space.space import build_space
from tune.study import Study

INTERRUPTED = 130
"""Exit status of a driver that SIGINT or SIGTERM has ended."""
NAME = "fake"
"""Name of the study."""
SPACE = """
regularizer.kind: {type: choice, choices: [l1, l2, cosine, none]}
regularizer.text_weight: {type: float, low: 0.5, high: 200, log: true}
regularizer.image_weight: {type: float, low: 0.2, high: 100, log: true}
"""
SMALL: dict[str, Any] = {
    "dataset": "textures",
    "trials": 4,
    "epochs": 3,
    "final_epochs": 3,
    "final_seeds": (1,),
    "seed": 3,
    "top": 0,
    "pruner": "none",
    "study": NAME,
    "max_concurrent": 1,
}
"""Options of a small study: one trial at a time, because a second worker takes seconds to start."""


def small_config(out: Path, **options: Any) -> StudyConfig:
    """Return the configuration of a study of three settings in OUT/fake.

    Args:
        out: Parent of the study's folder.
        options: Options of `StudyConfig.of`, which replace those of `SMALL`.
    """
    space = build_space(parse_yaml(SPACE, where="small"), name="small")
    return StudyConfig.of(**{**SMALL, "space": space, "out": out, **options})


def misbehave(out: Path, behaviour: dict[str, str]) -> None:
    """Tell the trials of OUT/fake how to behave (see `tests.support.fake_trial`)."""
    _misbehave(out / NAME, behaviour)


def run_fake(
    out: Path, *, behaviour: dict[str, str] | None = None, on_ray: bool = False, **options: Any
) -> tuple[dict[str, Any], str]:
    """Run a study whose trials do not train in OUT/fake.

    Args:
        out: Parent of the study's folder.
        behaviour: Behaviour of trials (see `tests.support.fake_trial`).
        on_ray: True to run the jobs on Ray. Otherwise they run one after the other in this process.
        options: Options of `small_config`.

    Returns:
        The content of finals.json, and the printed text.
    """
    if behaviour is not None:
        misbehave(out, behaviour)
    text = io.StringIO()
    config = small_config(out, **options)
    if on_ray:
        _run(config, text)
    else:
        with _without_ray():
            _run(config, text)
    return json.loads((out / NAME / "finals.json").read_text()), text.getvalue()


def _run(config: StudyConfig, shown: TextIO) -> None:
    """Run a study with `FakeTrial` as its worker. Print to `shown`."""
    from tune.execution import executor

    with mock.patch.object(executor, "run_jobs", partial(executor.run_jobs, worker=FakeTrial)):
        Study(config=config, console=Console(file=shown, width=200, soft_wrap=True)).run()


@contextlib.contextmanager
def _without_ray() -> Iterator[None]:
    """Run jobs in this process. Only Ray and Ray Tune are replaced. The rest of the executor is used."""
    from tune.execution import executor, ray_cluster

    def fit(dispatcher: Any, *_: Any) -> None:
        for number in itertools.count():
            request = dispatcher.next_request(str(number))
            if request is None:
                return
            training = FakeTraining(request)
            while not dispatcher.reported(str(number), training.advance()):
                pass
            dispatcher.completed(str(number))

    with (
        mock.patch.object(ray_cluster, "start_ray", return_value=[{"CPU": 2.0}]),
        mock.patch.object(executor, "_fit", fit),
    ):
        yield


def records(out: Path) -> list[dict[str, Any]]:
    """Return the records of all trials of OUT/fake, ordered by number."""
    files = sorted((out / NAME / "trials").glob("*/record.json"))
    return [json.loads(file.read_text()) for file in files]


class Driver:
    """A process that runs a study in OUT/fake.

    It has its own session, so that all Ray processes that it starts can be killed with it. As a context
    manager, it kills them at the end.

    Args:
        out: Parent of the study's folder.
        options: Options of the command.
        env: Environment of the process. Default: the environment of this process.
    """

    entry: tuple[str, ...] = ("-m", "tests.support.driver")
    """Arguments of Python before OUT and the options."""

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
        """Return the text that the driver has printed so far."""
        return Path(self._printed).read_text()

    def wait_until(self, condition: Callable[[], Any], timeout_seconds: float = 400) -> None:
        """Wait until a condition holds.

        Raises:
            AssertionError: The driver ended before, or the time is over.
        """
        end = time.monotonic() + timeout_seconds
        while not condition():
            assert self.process.poll() is None, f"the driver ended by itself: {self.errors()}"
            assert time.monotonic() < end, f"the driver made no progress: {self.said()}"
            time.sleep(0.02)

    def errors(self) -> str:
        """Wait until the driver has ended. Return its standard error, which can be read only once."""
        self.wait()  # it also kills the Ray processes, which have the pipe open
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def kill(self) -> int:
        """Kill only the driver, with SIGKILL, so that its Ray processes go on. Return its exit status."""
        self.process.kill()
        return self.process.wait()

    def end(self, sig: signal.Signals) -> int:
        """Send a signal to the driver and wait for its end. Return its exit status."""
        self.process.send_signal(sig)
        return self.wait()

    def wait(self, timeout_seconds: float = 600) -> int:
        """Wait until the driver has ended, then kill the Ray processes that it left. Return its exit status.

        Raises:
            subprocess.TimeoutExpired: The driver is still running. It is killed.
        """
        try:
            return self.process.wait(timeout=timeout_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            for pid in session(self.process.pid):  # Ray's workers have their own process groups
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def forget_hanging(out: Path, timeout_seconds: float = 400) -> None:
    """Wait until the hanging workers of OUT/fake have ended, and delete their marks.

    Ray processes that outlive the driver end its workers soon, but not at once.

    Raises:
        AssertionError: A worker still runs after `timeout_seconds`.
    """
    end = time.monotonic() + timeout_seconds
    for mark in (out / NAME).glob(f"*/*/{HANGS}"):
        while _is_running(int(mark.read_text())):
            assert time.monotonic() < end, f"a worker of no driver still runs: {mark}"
            time.sleep(0.02)
        mark.unlink()


def _is_running(pid: int) -> bool:
    """Return whether a process exists and is not a zombie. Without /proc, return False."""
    try:
        # The command line of a zombie is empty.
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False


def _parse(options: Sequence[str]) -> argparse.Namespace:
    """Parse OUT and the options of the command. Options that are not given are left out."""
    parser = argparse.ArgumentParser(argument_default=argparse.SUPPRESS)
    parser.add_argument("out", type=Path)
    for name in ("trials", "seed", "top", "max-concurrent"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("sampler", "address", "storage"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--final-seeds", type=int, nargs="*")
    parser.add_argument("--flaky", type=int, default=None, help="seed: one statement in fifty fails")
    parser.add_argument(
        "--set-back", action="store_true", default=False, help="set the clock back by an hour"
    )
    return parser.parse_args(options)


def options_of(*words: object) -> dict[str, Any]:
    """Return the options of `small_config` that correspond to options of the command."""
    given = vars(_parse(["unused", *map(str, words)]))
    driver_options = ("out", "flaky", "set_back")
    return {name: value for name, value in given.items() if name not in driver_options}


def main(options: Sequence[str]) -> int:
    """Run the study of a command. Return the exit status."""
    gc.freeze()
    gc.enable()
    given = _parse(options)
    # A shell starts its background jobs, and so their children, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if given.flaky is not None:
        fail_one_in_fifty(random.Random(given.flaky))
    if given.set_back:
        rdb.datetime = Back  # type: ignore[attr-defined]  # the clock of Optuna's storage
    try:
        _run(small_config(given.out, **options_of(*options[1:])), sys.stdout)
    except KeyboardInterrupt:
        return INTERRUPTED
    except PrometarError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def fail_one_in_fifty(draw: random.Random) -> Callable[..., None]:
    """Let one in fifty statements fail, in all databases of this process.

    Args:
        draw: Random generator that chooses the statements.

    Returns:
        The listener of `sqlalchemy.event`, with which `event.remove` ends the faults.
    """

    def fail(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if draw.random() < 1 / 50:
            raise OperationalError(statement, {}, Exception("disk I/O error"))

    event.listen(Engine, "before_cursor_execute", fail)
    return fail


class Back(datetime):
    """A clock that is set back by an hour after its first use."""

    num_uses = 0
    """How often `now` has been called."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        cls.num_uses += 1
        if cls.num_uses == 1:
            return datetime.now(tz)
        return datetime.now(tz) - timedelta(hours=1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
