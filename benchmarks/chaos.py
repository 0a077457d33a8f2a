"""Kill studies at random moments until they finish, and count lost results.

    python benchmarks/chaos.py [--studies 10] [--real 0] [--kills 4] [--seed 0] [--quick] [--json FILE]

Each study is interrupted `--kills` times and restarted with the same command. Then it runs to its end:

- SIGKILL of the driver or of a worker that runs a trial, or SIGTERM to the driver;
- a full or read-only disk until the command ends (a separate file system, which only root can mount);
- a database in which one statement in fifty fails, or a clock that is set back by an hour;
- SIGKILL of a node in every third study, which runs on a Ray cluster of three nodes. Another node then joins;
- corrupt state (only `--real`): a checkpoint is truncated to half its size after the driver was killed.

`--studies` use a trial that does not train: six trials of three epochs, then two settings with two fresh
seeds each, then the same settings with two final-test seeds. `--real` studies train on the embedded dataset
and backbone. The baseline is the same study without interruptions and with one trial at a time. The results
must be identical to the baseline's, including the final prompts of `--real` studies, bit for bit. The exit
status is 1 if a result was lost.
"""

import argparse
import contextlib
import os
import random
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
from tests.support.driver import NAME, Driver, misbehave, trial_workers
from tests.support.nodes import Cluster
from tests.support.witness import NO_LOSSES, Witness, num_epochs, outcome

DRIVER, TERM, WORKER, NODE, DAMAGED = "driver -9", "SIGTERM", "worker -9", "node -9", "state damaged"
FULL, READ_ONLY, FLAKY, SET_BACK = "disk full", "disk read-only", "1 in 50 fails", "clock set back"
KINDS = (DRIVER, TERM, WORKER, NODE, DAMAGED, FULL, READ_ONLY, FLAKY, SET_BACK)
NUM_NODES = 3
MOST_RESTARTS = 2  # by one command: a trial whose workers die three times has failed
NOT_STARTED = "Cannot start Ray"  # within two attempts of 30 s each, on a busy machine
KILLED = (-signal.SIGKILL, -signal.SIGTERM, signal.SIGTERM, INTERRUPTED)  # statuses of drivers that were hit


class RealDriver(Driver):
    entry = ("tune/search.py", "--study", NAME, "--out")


@dataclass(frozen=True)
class Ask:
    """A study: its command, how far it is (0 to `steps`), and about how long one such step takes."""

    driver: type[Driver]
    options: tuple[object, ...]
    progress: Callable[[Path], int]
    steps: int
    step_seconds: float

    @property
    def real(self) -> bool:
        return self.driver is RealDriver


def fake(seed: int, sampler: str) -> Ask:
    options = ("--trials", 6, "--top", 1, "--final-seeds", 1, 2, "--sampler", sampler, "--seed", seed)
    return Ask(Driver, options, num_epochs, 3 * (6 + 4 + 4), 0.3)


def real(seed: int) -> Ask:
    sizes = ("--trials", 3, "--epochs", 2, "--val-per-class", 4, "--set", "data.shots=4")
    seeds = ("--top", 1, "--top-seeds", 1, "--final-seeds", "1 2", "--seed", seed)
    return Ask(RealDriver, (*sizes, *seeds), num_results, 3 + 2 + 2, 5.0)


def num_results(out: Path) -> int:
    """Trials and runs of a study that have ended."""
    return len(list((out / NAME).glob("*/*/result.json")))


def found(ask: Ask, out: Path) -> dict[str, Any]:
    """What a study has found; of a real one also its final prompts, as bytes."""
    prompts = {}
    for file in (out / NAME).glob("finals/*/checkpoint.safetensors") if ask.real else ():
        checkpoint = load_checkpoint(file)
        assert checkpoint is not None
        tensors = checkpoint.state.tensors()
        prompts[file.parent.name] = {name: _bytes(tensor) for name, tensor in tensors.items()}
    return outcome(out) | prompts


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@cache
def undisturbed(ask: Ask) -> tuple[dict[str, Any], float]:
    """The baseline: what the study finds, and the seconds it takes."""
    with TemporaryDirectory() as folder:
        out, began = Path(folder), time.monotonic()
        with ask.driver(out, *ask.options, "--max-concurrent", 1) as driver:
            if driver.wait(900):
                raise SystemExit(f"the undisturbed study has failed: {driver.errors()}")
        return found(ask, out), time.monotonic() - began


@dataclass
class Count:
    """What was done to a study (`kills`, of other kinds too), and what came of it."""

    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    finished: int = 0  # results that were there at a kill
    losses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class Torment:
    """One study, killed at random moments until it is done.

    Args:
        cluster: Where it runs (default None: in a Ray that each command starts, one trial at a time).
    """

    def __init__(self, ask: Ask, draw: random.Random, num_kills: int, cluster: Cluster | None = None) -> None:
        self._ask, self._draw, self._left, self._cluster = ask, draw, num_kills, cluster
        self._place = ("--address", cluster.address) if cluster else ("--max-concurrent", 1)
        self._disk: Disk | None = None
        self._refused = False  # whether this command may end by itself, with a line
        self.count = Count()

    def run(self) -> Count:
        """Run it to its end. Returns what was lost on the way."""
        expected, _ = undisturbed(self._ask)
        began = time.monotonic()
        with ExitStack() as started:
            out = Path(mkdtemp(prefix="prometar-chaos-"))
            if not (self._ask.real or self._cluster):
                self._disk = own_disk(out / NAME)
            if self._disk:
                started.callback(self._disk.end)
            if not self._ask.real:
                misbehave(out, {"all": "sleep0.2"})
            witness, status = Witness(out), -1
            while status != 0:
                env = self._cluster.env if self._cluster else None
                driver = self._ask.driver(out, *self._ask.options, *self._place, *self._ill(), env=env)
                started.enter_context(driver)  # what a killed one leaves of Ray lives on beside the next
                status = self._command(out, driver)
                self.count.statuses[status] += 1
                errors = driver.errors()
                told = NOT_STARTED in errors or (self._refused and errors.count("\n") == 1)
                if status not in (0, *KILLED) and not (status == 1 and told):
                    raise SystemExit(f"a driver ended with status {status}: {errors}")
                self.count.finished = witness.look()
            ours = found(self._ask, out)
            differing = [key for key in ours | expected if ours.get(key) != expected.get(key)]
            losses = witness.losses(expected) | {"differing": differing}
            if losses != NO_LOSSES and self._disk:
                shutil.copytree(out / NAME, out / "kept")  # the disk is in memory
        self.count.losses = {kind: len(each) for kind, each in losses.items()}
        if losses == NO_LOSSES:
            shutil.rmtree(out)
        else:
            print(f"kept for a look: {out}, {losses}")
        self.count.seconds = time.monotonic() - began
        return self.count

    def _ill(self) -> tuple[object, ...]:
        """Options of the next command: some meet a database or a clock that fails."""
        asked = self._left and not (self._ask.real or self._cluster)
        kind = self._draw.choice((FLAKY, SET_BACK, "", "")) if asked else ""
        self._refused = kind == FLAKY
        if kind:
            self.count.kills[kind] += 1
        return {FLAKY: ("--flaky", self._draw.randrange(1000)), SET_BACK: ("--set-back",), "": ()}[kind]

    def _command(self, out: Path, driver: Driver) -> int:
        """One command, until it was killed or is done. Returns its status."""
        restarts = 0
        while self._left and self._moment(out, driver):
            kind = self._kind(restarts)
            self._left -= 1
            if kind in (WORKER, NODE):
                restarts += 1
                self.count.kills[kind] += self._kill_node() if kind == NODE else self._kill_worker(driver)
                continue
            if self._disk and kind in (FULL, READ_ONLY):
                self.count.kills[kind] += 1
                return self._refuse(kind, self._disk, driver)
            status = driver.end(signal.SIGTERM) if kind == TERM else driver.kill()
            if kind == DAMAGED and not self._damage(out):
                kind = DRIVER
            self.count.kills[kind] += 1
            return status
        return driver.wait(900)

    def _kind(self, restarts: int) -> str:
        kinds = [DRIVER, TERM, WORKER, DAMAGED if self._ask.real else NODE if self._cluster else DRIVER]
        kind = self._draw.choice([*kinds, FULL, READ_ONLY] if self._disk else kinds)
        return DRIVER if kind in (WORKER, NODE) and restarts == MOST_RESTARTS else kind

    def _moment(self, out: Path, driver: Driver) -> bool:
        """Wait for a random moment; False if the driver has ended before."""
        now, last = self._ask.progress(out), self._ask.steps - 1
        until = min(last, now + self._draw.randint(0, max(0, 2 * (last - now) // (self._left + 1))))
        while self._ask.progress(out) < until and driver.process.poll() is None:
            time.sleep(0.02)
        time.sleep(self._draw.uniform(0, self._ask.step_seconds if until > now else 8))
        return driver.process.poll() is None

    def _kill_worker(self, driver: Driver) -> int:
        workers = trial_workers(self._cluster.leader if self._cluster else driver.process.pid)
        for pid in workers[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                return 1
        return 0  # none has been started yet

    def _refuse(self, kind: str, disk: Disk, driver: Driver) -> int:
        """Refuse all writes until the command has ended. Returns its status."""
        refuse, allow = (disk.fill, disk.free) if kind == FULL else (disk.protect, disk.unprotect)
        refuse()
        self._refused = True
        try:
            return driver.wait(900)
        finally:
            allow()

    def _kill_node(self) -> int:
        assert self._cluster is not None
        self._cluster.kill(self._draw.choice(self._cluster.nodes))
        self._cluster.add(1)
        return 1

    def _damage(self, out: Path) -> bool:
        """Cut a checkpoint of a run that goes on in half; False where there is none."""
        for file in sorted((out / NAME).glob("*/*/checkpoint.safetensors")):
            if not file.with_name("result.json").exists():
                os.truncate(file, file.stat().st_size // 2)
                return True
        return False


def own_disk(path: Path) -> Disk | None:
    """None where it cannot be mounted."""
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
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that what was started is ended
    if args.quick:
        args.studies, args.real, args.kills = 1, 0, 1
    counts: dict[str, list[Count]] = {"one trial at a time": [], "on three nodes": [], "real": []}
    clustered = [number % 3 == 2 for number in range(args.studies)]
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(*[1] * NUM_NODES)) if any(clustered) else None
        for number in range(args.studies + args.real):
            draw = random.Random(f"{args.seed} {number}")
            if number >= args.studies:
                what, torment = "real", Torment(real(number % 2 + 1), draw, args.kills)
            elif clustered[number]:  # settings that do not hang on which trial ends first
                what = "on three nodes"
                torment = Torment(fake(number % 2 + 1, "random"), draw, args.kills, cluster)
            else:
                what, torment = "one trial at a time", Torment(fake(number % 2 + 1, "tpe"), draw, args.kills)
            counts[what].append(torment.run())
            _tell(number, what, counts[what][-1])
    return _conclude(args, {what: each for what, each in counts.items() if each})


def _tell(number: int, what: str, count: Count) -> None:
    kills = ", ".join(f"{times} x {kind}" for kind, times in count.kills.items())
    lost = {kind: num for kind, num in count.losses.items() if num}
    print(f"study {number} ({what}), {count.seconds:.0f} s: {kills}; lost: {lost or 'nothing'}", flush=True)


def _conclude(args: argparse.Namespace, counts: dict[str, list[Count]]) -> int:
    """Print the tables, write the figures. Returns the exit status."""
    print(describe(1))
    rows = []
    for what, each in counts.items():
        kills = sum((count.kills for count in each), Counter())
        commands = sum(count.statuses.total() for count in each)
        lost = [sum(count.losses[kind] for count in each) for kind in NO_LOSSES]
        killed = [kills[kind] for kind in KINDS]
        rows.append((what, len(each), commands, *killed, sum(count.finished for count in each), *lost))
    print(table(("", "studies", "commands", *KINDS, "finished at kills", *NO_LOSSES), rows))
    seconds = {what: [count.seconds for count in each] for what, each in counts.items()}
    print("seconds a study: " + "; ".join(f"{w} {min(s):.0f} to {max(s):.0f}" for w, s in seconds.items()))
    write_json(args, {what: [vars(count) for count in each] for what, each in counts.items()})
    return int(any(num for each in counts.values() for count in each for num in count.losses.values()))


if __name__ == "__main__":
    sys.exit(main())
