"""Interrupt studies at random moments, resume them until they finish, and count lost results.

    python benchmarks/chaos.py [--studies 10] [--real 0] [--kills 4] [--seed 0] [--quick] [--json FILE]

Each study is interrupted `--kills` times, restarted with the same command, and then finished. Interruptions:

- SIGKILL of the driver or of a worker that runs a trial, or SIGTERM to the driver;
- a full or read-only disk until the command ends (on a separate file system, which only root can mount);
- a database in which one statement in fifty fails, or a clock that is set back by an hour;
- SIGKILL of a node in every third study, which runs on a Ray cluster of three nodes. Another node then joins;
- a corrupt checkpoint (only `--real`): truncated to half its size after the driver was killed.

`--studies` use a trial that does not train: six trials of three epochs, then two settings with two fresh
seeds each, then the same settings with two final-test seeds. `--real` studies train on `cells` with `mini`.
The results must be identical to those of an uninterrupted study with one trial at a time, including the final
prompts of `--real` studies, bit for bit. The exit status is 1 if a result was lost or differs.
"""

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
from common import ROOT, arguments, describe, table, write_json

sys.path.insert(0, str(ROOT))

from prometar.cli.console import INTERRUPTED
from prometar.training.checkpoint import load_checkpoint
from tests.support.disk import MIB, Disk
from tests.support.driver import NAME, Driver, misbehave
from tests.support.nodes import Cluster
from tests.support.processes import session
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome

DRIVER = "driver -9"
TERM = "SIGTERM"
WORKER = "worker -9"
NODE = "node -9"
TRUNCATED = "corrupt checkpoint"
FULL = "disk full"
READ_ONLY = "disk read-only"
FLAKY = "1 in 50 fails"
SET_BACK = "clock set back"
KINDS = (DRIVER, TERM, WORKER, NODE, TRUNCATED, FULL, READ_ONLY, FLAKY, SET_BACK)
NUM_NODES = 3
MAX_RESTARTS = 2  # per command, because a trial fails when its workers have died three times
NOT_STARTED = "Cannot start Ray"  # on a busy machine, two attempts of 30 s can fail
KILLED = (-signal.SIGKILL, -signal.SIGTERM, signal.SIGTERM, INTERRUPTED)  # exit statuses of killed drivers


class RealDriver(Driver):
    entry = ("tune/search.py", "--study", NAME, "--out")


@dataclass(frozen=True)
class Scenario:
    """A study: its command, its progress (0 to `steps`), and the approximate duration of a step."""

    driver: type[Driver]
    options: tuple[object, ...]
    progress: Callable[[Path], int]
    steps: int
    step_seconds: float

    @property
    def real(self) -> bool:
        return self.driver is RealDriver


def fake_study(seed: int, sampler: str) -> Scenario:
    options = ("--trials", 6, "--top", 1, "--final-seeds", 1, 2, "--sampler", sampler, "--seed", seed)
    return Scenario(Driver, options, num_epochs, 3 * (6 + 4 + 4), 0.3)


def real_study(seed: int) -> Scenario:
    sizes = ("--trials", 3, "--epochs", 2, "--set", "search.val_per_class=4", "--set", "data.shots=4")
    seeds = ("--top", 1, "--set", "confirm.seeds=1", "--final-seeds", "1 2", "--seed", seed)
    return Scenario(RealDriver, (*sizes, *seeds), num_results, 3 + 2 + 2, 5.0)


def num_results(out: Path) -> int:
    """Return the number of finished trials and runs of a study."""
    return len(list((out / NAME).glob("*/*/result.json")))


def results_of(scenario: Scenario, out: Path) -> dict[str, Any]:
    """Return the results of a study, including the bytes of its final prompts if it is real."""
    prompts = {}
    for file in (out / NAME).glob("finals/*/checkpoint.safetensors") if scenario.real else ():
        checkpoint = load_checkpoint(file)
        assert checkpoint is not None
        tensors = checkpoint.state.tensors()
        prompts[file.parent.name] = {name: _bytes(tensor) for name, tensor in tensors.items()}
    return outcome(out) | prompts


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@cache
def uninterrupted(scenario: Scenario) -> tuple[dict[str, Any], float]:
    """Run the study without interruptions. Return its results and duration in seconds."""
    with TemporaryDirectory() as folder:
        out = Path(folder)
        began = time.monotonic()
        with scenario.driver(out, *scenario.options, "--max-concurrent", 1) as driver:
            if driver.wait(900):
                raise SystemExit(f"the uninterrupted study failed: {driver.errors()}")
        return results_of(scenario, out), time.monotonic() - began


@dataclass
class Count:
    """Interruptions of a study (`kills` by kind), its commands' exit statuses, and its losses."""

    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    finished: int = 0  # results that existed when a command ended
    losses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class InterruptedStudy:
    """A study that is killed at random moments and restarted until it finishes.

    Args:
        cluster: Cluster that runs the study. None: each command starts Ray and runs one trial at a time.
    """

    def __init__(
        self, scenario: Scenario, rng: random.Random, num_kills: int, cluster: Cluster | None = None
    ) -> None:
        self._scenario = scenario
        self._rng = rng
        self._left = num_kills
        self._cluster = cluster
        self._where = ("--address", cluster.address) if cluster else ("--max-concurrent", 1)
        self._disk: Disk | None = None
        self._may_fail = False  # True if the current command may end with a one-line error
        self.count = Count()

    def run(self) -> Count:
        """Run the study until it finishes. Return its interruptions and losses."""
        expected, _ = uninterrupted(self._scenario)
        began = time.monotonic()
        with ExitStack() as started:
            out = Path(mkdtemp(prefix="prometar-chaos-"))
            if not (self._scenario.real or self._cluster):
                self._disk = mount_disk(out / NAME)
            if self._disk:
                started.callback(self._disk.end)
            if not self._scenario.real:
                misbehave(out, {"all": "sleep0.2"})
            witness = Witness(out)
            status = -1
            while status != 0:
                env = self._cluster.env if self._cluster else None
                driver = self._scenario.driver(
                    out, *self._scenario.options, *self._where, *self._fault_options(), env=env
                )
                started.enter_context(driver)  # the Ray processes of a killed driver outlive it
                status = self._command(out, driver)
                self.count.statuses[status] += 1
                errors = driver.errors()
                explained = NOT_STARTED in errors or (self._may_fail and errors.count("\n") == 1)
                if status not in (0, *KILLED) and not (status == 1 and explained):
                    raise SystemExit(f"a driver ended with status {status}: {errors}")
                self.count.finished = witness.look()
            ours = results_of(self._scenario, out)
            differing = [key for key in ours | expected if ours.get(key) != expected.get(key)]
            losses = witness.losses(expected) | {"differing": differing}
            if losses != NO_LOSSES and self._disk:
                shutil.copytree(out / NAME, out / "kept")  # the disk is in memory
        self.count.losses = {kind: len(each) for kind, each in losses.items()}
        if losses == NO_LOSSES:
            shutil.rmtree(out)
        else:
            print(f"kept for inspection: {out}, {losses}")
        self.count.seconds = time.monotonic() - began
        return self.count

    def _fault_options(self) -> tuple[object, ...]:
        """Return options of the next command that make the database or the clock fail, or none."""
        eligible = self._left and not (self._scenario.real or self._cluster)
        kind = self._rng.choice((FLAKY, SET_BACK, "", "")) if eligible else ""
        self._may_fail = kind == FLAKY
        if kind:
            self.count.kills[kind] += 1
        return {FLAKY: ("--flaky", self._rng.randrange(1000)), SET_BACK: ("--set-back",), "": ()}[kind]

    def _command(self, out: Path, driver: Driver) -> int:
        """Wait until a command finishes or is killed. Return its exit status."""
        restarts = 0
        while self._left and self._wait_for_moment(out, driver):
            kind = self._choose_kind(restarts)
            self._left -= 1
            if kind in (WORKER, NODE):
                restarts += 1
                self.count.kills[kind] += self._kill_node() if kind == NODE else self._kill_worker(driver)
                continue
            if self._disk and kind in (FULL, READ_ONLY):
                self.count.kills[kind] += 1
                return self._refuse_writes(kind, self._disk, driver)
            status = driver.end(signal.SIGTERM) if kind == TERM else driver.kill()
            if kind == TRUNCATED and not self._truncate_checkpoint(out):
                kind = DRIVER
            self.count.kills[kind] += 1
            return status
        return driver.wait(900)

    def _choose_kind(self, restarts: int) -> str:
        other = DRIVER
        if self._scenario.real:
            other = TRUNCATED
        elif self._cluster:
            other = NODE
        kinds = [DRIVER, TERM, WORKER, other]
        kind = self._rng.choice([*kinds, FULL, READ_ONLY] if self._disk else kinds)
        return DRIVER if kind in (WORKER, NODE) and restarts == MAX_RESTARTS else kind

    def _wait_for_moment(self, out: Path, driver: Driver) -> bool:
        """Wait for a random moment. Return False if the driver ended earlier."""
        now = self._scenario.progress(out)
        last = self._scenario.steps - 1
        until = min(last, now + self._rng.randint(0, max(0, 2 * (last - now) // (self._left + 1))))
        while self._scenario.progress(out) < until and driver.process.poll() is None:
            time.sleep(0.02)
        time.sleep(self._rng.uniform(0, self._scenario.step_seconds if until > now else 8))
        return driver.process.poll() is None

    def _kill_worker(self, driver: Driver) -> int:
        for pid in session(self._cluster.leader if self._cluster else driver.process.pid):
            with contextlib.suppress(OSError):  # the process has ended
                if re.match(r"ray::(JobWorker|FakeTrial)", Path(f"/proc/{pid}/cmdline").read_text()):
                    os.kill(pid, signal.SIGKILL)
                    return 1
        return 0  # no worker has started yet

    def _refuse_writes(self, kind: str, disk: Disk, driver: Driver) -> int:
        """Refuse all writes until the command ends. Return its exit status."""
        refuse, allow = (disk.fill, disk.free) if kind == FULL else (disk.protect, disk.unprotect)
        refuse()
        self._may_fail = True
        try:
            return driver.wait(900)
        finally:
            allow()

    def _kill_node(self) -> int:
        assert self._cluster is not None
        self._cluster.kill(self._rng.choice(self._cluster.nodes))
        self._cluster.add(1)
        return 1

    def _truncate_checkpoint(self, out: Path) -> bool:
        """Truncate the checkpoint of an unfinished run to half its size. Return False if there is none."""
        for file in sorted((out / NAME).glob("*/*/checkpoint.safetensors")):
            if not file.with_name("result.json").exists():
                os.truncate(file, file.stat().st_size // 2)
                return True
        return False


def mount_disk(path: Path) -> Disk | None:
    """Mount a small file system at `path`. Return None if mounting is not allowed."""
    try:
        return Disk(path, 64 * MIB)
    except (OSError, subprocess.CalledProcessError):
        path.rmdir()
        return None


def main() -> int:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--studies", type=int, default=10, help="studies whose trials do not train")
        parser.add_argument("--real", type=int, default=0, help="studies that train")
        parser.add_argument("--kills", type=int, default=4, help="interruptions per study")
        parser.add_argument("--seed", type=int, default=0, help="seed of the times and kinds")

    args = arguments(__doc__, add)
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that context managers stop all started processes
    if args.quick:
        args.studies = 1
        args.real = 0
        args.kills = 1
    counts: dict[str, list[Count]] = {"one trial at a time": [], "on three nodes": [], "real": []}
    clustered = [number % 3 == 2 for number in range(args.studies)]
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(*[1] * NUM_NODES)) if any(clustered) else None
        for number in range(args.studies + args.real):
            rng = random.Random(f"{args.seed} {number}")
            if number >= args.studies:
                group = "real"
                study = InterruptedStudy(real_study(number % 2 + 1), rng, args.kills)
            elif clustered[number]:  # random settings do not depend on the order in which trials end
                group = "on three nodes"
                study = InterruptedStudy(fake_study(number % 2 + 1, "random"), rng, args.kills, cluster)
            else:
                group = "one trial at a time"
                study = InterruptedStudy(fake_study(number % 2 + 1, "tpe"), rng, args.kills)
            counts[group].append(study.run())
            _print_study(number, group, counts[group][-1])
    return _print_tables(args, {group: each for group, each in counts.items() if each})


def _print_study(number: int, group: str, count: Count) -> None:
    kills = ", ".join(f"{times} x {kind}" for kind, times in count.kills.items())
    lost = {kind: num for kind, num in count.losses.items() if num}
    print(f"study {number} ({group}), {count.seconds:.0f} s: {kills}; lost: {lost or 'nothing'}", flush=True)


def _print_tables(args: argparse.Namespace, counts: dict[str, list[Count]]) -> int:
    """Print the tables and write --json. Return the exit status."""
    print(describe(1))
    rows = []
    for group, each in counts.items():
        kills = sum((count.kills for count in each), Counter())
        commands = sum(count.statuses.total() for count in each)
        lost = [sum(count.losses[kind] for count in each) for kind in NO_LOSSES]
        killed = [kills[kind] for kind in KINDS]
        rows.append((group, len(each), commands, *killed, sum(count.finished for count in each), *lost))
    print(table(("", "studies", "commands", *KINDS, "finished at kills", *NO_LOSSES), rows))
    seconds = {group: [count.seconds for count in each] for group, each in counts.items()}
    print("seconds per study: " + "; ".join(f"{g} {min(s):.0f} to {max(s):.0f}" for g, s in seconds.items()))
    write_json(args, {group: [vars(count) for count in each] for group, each in counts.items()})
    return int(any(num for each in counts.values() for count in each for num in count.losses.values()))


if __name__ == "__main__":
    sys.exit(main())
