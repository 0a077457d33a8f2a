"""Interrupt studies at random moments, resume them until they finish, and count lost results.

    python benchmarks/chaos.py [--studies 10] [--real 0] [--kills 4] [--seed 0] [--quick] [--json FILE]

The driver is the process of the command. Each study is interrupted `--kills` times, restarted with the same
command after each interruption that ends it, and then finished. Interruptions:

- The driver receives SIGKILL or SIGTERM, or a worker that runs a trial receives SIGKILL.
- The disk is full or read-only until the command ends. The study is on its own file system for this, which
  only root can mount.
- One statement in fifty fails in the database, or the clock is set back by an hour.
- All processes of a node receive SIGKILL, and another node joins. This happens in every third study, which
  runs on a Ray cluster of three nodes.
- A checkpoint is truncated to half its size after the driver was killed. This happens in `--real` studies.

Studies of `--studies` do not train. They have six trials of three epochs. Then two settings run with two
fresh seeds each, and again with two final-test seeds. Studies of `--real` train on `cells` with `mini`. All
results must be identical to those of an uninterrupted study with one trial at a time. The final prompts of
`--real` studies must be equal bit for bit. The exit status is 1 if a result was lost or differs.
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
"""Kinds of interruptions, as columns of the table."""

NUM_NODES = 3
"""Nodes of the Ray cluster."""

START_SECONDS = 8.0
"""Approximate time that a command needs until its first step."""

COMMAND_SECONDS = 900
"""Time limit of a command, far above its duration."""

MAX_WORKER_KILLS = 2
"""Maximum kills of workers and nodes per command. A trial fails when its workers have died three times."""

NOT_STARTED = "Cannot start Ray"
"""Error of a command whose two attempts of 30 s to start Ray failed, which happens on a busy machine."""

KILLED = (-signal.SIGKILL, -signal.SIGTERM, signal.SIGTERM, INTERRUPTED)
"""Exit statuses of killed drivers."""


class RealDriver(Driver):
    """A driver that searches with `tune/search.py`, as users do."""

    entry = ("tune/search.py", "--study", NAME, "--out")


@dataclass(frozen=True)
class Scenario:
    """A study to interrupt.

    Args:
        driver: Class of the process that runs the study.
        options: Options of the command.
        progress: Function that returns the number of finished steps of the study in a folder. A step is an
            epoch, or a whole run.
        steps: Approximate number of steps of the whole study.
        step_seconds: Approximate duration of a step.
    """

    driver: type[Driver]
    options: tuple[object, ...]
    progress: Callable[[Path], int]
    steps: int
    step_seconds: float

    @property
    def real(self) -> bool:
        """Whether the study trains."""
        return self.driver is RealDriver


def fake_study(seed: int, sampler: str) -> Scenario:
    """Return a study that does not train."""
    num_trials = 6
    num_confirmation_runs = 2 * 2  # two settings with two seeds each
    num_final_runs = 2 * 2
    epochs = 3  # of each run
    size = ("--trials", num_trials, "--top", 1, "--final-seeds", 1, 2)
    return Scenario(
        driver=Driver,
        options=(*size, "--sampler", sampler, "--seed", seed),
        progress=num_epochs,
        steps=epochs * (num_trials + num_confirmation_runs + num_final_runs),
        step_seconds=0.3,
    )


def real_study(seed: int) -> Scenario:
    """Return a small study that trains."""
    size = ("--trials", 3, "--epochs", 2, "--top", 1, "--final-seeds", "1 2")
    settings = ("search.val_per_class=4", "data.shots=4", "confirm.seeds=1")
    options: list[object] = [*size, "--seed", seed]
    for setting in settings:
        options += ["--set", setting]
    return Scenario(
        driver=RealDriver,
        options=tuple(options),
        progress=num_results,
        steps=7,
        step_seconds=5.0,
    )


def num_results(out: Path) -> int:
    """Return the number of finished trials and runs of a study."""
    return len(list((out / NAME).glob("*/*/result.json")))


def results_of(scenario: Scenario, out: Path) -> dict[str, Any]:
    """Return the results of a study, including the bytes of its final prompts if it is real."""
    results = outcome(out)
    if scenario.real:
        for file in (out / NAME).glob("finals/*/checkpoint.safetensors"):  # one folder per run
            checkpoint = load_checkpoint(file)
            assert checkpoint is not None
            tensors = checkpoint.state.tensors()
            results[file.parent.name] = {name: _bytes(tensor) for name, tensor in tensors.items()}
    return results


def _bytes(tensor: torch.Tensor) -> bytes:
    """Return the bytes of a tensor, so that NaNs and signs of zeros are compared as well."""
    return tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()


@cache
def uninterrupted(scenario: Scenario) -> tuple[dict[str, Any], float]:
    """Run the study without interruptions. Return its results and duration in seconds.

    Raises:
        SystemExit: The study fails.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder)
        began = time.monotonic()
        with scenario.driver(out, *scenario.options, "--max-concurrent", 1) as driver:
            if driver.wait(COMMAND_SECONDS):
                raise SystemExit(f"the uninterrupted study failed: {driver.errors()}")
        return results_of(scenario, out), time.monotonic() - began


@dataclass
class Count:
    """What happened to an interrupted study.

    Args:
        kills: Number of interruptions by kind.
        statuses: Number of commands by exit status.
        finished: Number of results that existed when a command ended. None of them may be lost.
        losses: Number of losses by kind (`Witness.losses`).
        seconds: Duration of all commands together.
    """

    kills: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    finished: int = 0
    losses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


class InterruptedStudy:
    """A study that is killed at random moments and restarted until it finishes.

    Args:
        scenario: The study.
        rng: Source of the moments and kinds of the interruptions.
        num_kills: Number of interruptions.
        cluster: Cluster that runs the study. None: each command starts Ray and runs one trial at a time.

    Attributes:
        count: What has happened so far.
    """

    def __init__(
        self, scenario: Scenario, rng: random.Random, num_kills: int, cluster: Cluster | None = None
    ) -> None:
        self._scenario = scenario
        self._rng = rng
        self._num_kills_left = num_kills
        self._cluster = cluster
        self._ray_options = ("--address", cluster.address) if cluster else ("--max-concurrent", 1)
        self._disk: Disk | None = None
        self._may_fail = False  # True if the current command may end with a one-line error
        self.count = Count()

    def run(self) -> Count:
        """Run the study until it finishes. Return its interruptions and losses.

        Raises:
            SystemExit: A command failed without an interruption that explains the failure.
        """
        expected, _ = uninterrupted(self._scenario)
        began = time.monotonic()
        out = Path(mkdtemp(prefix="prometar-chaos-"))
        with ExitStack() as stack:
            if not (self._scenario.real or self._cluster):
                self._disk = mount_disk(out / NAME)
            if self._disk:
                stack.callback(self._disk.end)
            if not self._scenario.real:
                misbehave(out, {"all": "sleep0.2"})  # so that interruptions fall within trials
            witness = Witness(out)
            self._run_commands(out, witness, stack)
            losses = witness.losses(expected)
            # Unlike those of the witness, these results include the final prompts.
            losses["differing"] = _differing(results_of(self._scenario, out), expected)
            if losses != NO_LOSSES and self._disk:
                shutil.copytree(out / NAME, out / "kept")  # the disk is in memory
        self.count.losses = {kind: len(each) for kind, each in losses.items()}
        if losses == NO_LOSSES:
            shutil.rmtree(out)
        else:
            print(f"kept for inspection: {out}, {losses}")
        self.count.seconds = time.monotonic() - began
        return self.count

    def _run_commands(self, out: Path, witness: Witness, stack: ExitStack) -> None:
        """Repeat the command until it succeeds. `stack` ends all drivers."""
        env = self._cluster.env if self._cluster else None
        status = -1
        while status != 0:
            options = (*self._scenario.options, *self._ray_options, *self._fault_options())
            driver = self._scenario.driver(out, *options, env=env)
            stack.enter_context(driver)  # the Ray processes of a killed driver outlive it
            status = self._command(out, driver)
            self.count.statuses[status] += 1
            errors = driver.errors()  # can be read only once
            if not self._is_explained(status, errors):
                raise SystemExit(f"a driver ended with status {status}: {errors}")
            self.count.finished = witness.look()

    def _is_explained(self, status: int, errors: str) -> bool:
        """Return True if the command succeeded, was killed, or had a fault that explains its failure."""
        if status == 0 or status in KILLED:
            return True
        is_one_line = errors.count("\n") == 1
        has_fault = self._may_fail and is_one_line
        return status == 1 and (NOT_STARTED in errors or has_fault)

    def _fault_options(self) -> tuple[object, ...]:
        """Return options of the next command that make the database fail or set the clock back, or none."""
        self._may_fail = False
        if self._num_kills_left == 0 or self._scenario.real or self._cluster:
            return ()
        kind = self._rng.choice((FLAKY, SET_BACK, None, None))  # half of the commands have no fault
        if kind is None:
            return ()
        self.count.kills[kind] += 1
        if kind == SET_BACK:
            return ("--set-back",)
        self._may_fail = True
        seed = self._rng.randrange(1000)  # decides which statements fail
        return ("--flaky", seed)

    def _command(self, out: Path, driver: Driver) -> int:
        """Wait until a command finishes or is killed. Return its exit status."""
        num_worker_kills = 0
        while self._num_kills_left and self._wait_for_moment(out, driver):
            kind = self._choose_kind(can_kill_worker=num_worker_kills < MAX_WORKER_KILLS)
            self._num_kills_left -= 1
            if kind in (WORKER, NODE):
                num_worker_kills += 1
                num_killed = self._kill_node() if kind == NODE else self._kill_worker(driver)
                self.count.kills[kind] += num_killed
                continue  # the command goes on
            if self._disk and kind in (FULL, READ_ONLY):
                self.count.kills[kind] += 1
                return self._refuse_writes(kind, self._disk, driver)
            status = driver.end(signal.SIGTERM) if kind == TERM else driver.kill()
            if kind == TRUNCATED and not self._truncate_checkpoint(out):
                kind = DRIVER  # no checkpoint was there to truncate
            self.count.kills[kind] += 1
            return status
        return driver.wait(COMMAND_SECONDS)

    def _choose_kind(self, *, can_kill_worker: bool) -> str:
        """Choose the next interruption at random, among those that this kind of study allows.

        Args:
            can_kill_worker: False to kill the driver instead of a worker or a node.
        """
        kinds = [DRIVER, TERM, WORKER]
        if self._scenario.real:
            kinds.append(TRUNCATED)
        elif self._cluster:
            kinds.append(NODE)
        else:
            kinds.append(DRIVER)  # again, so that worker kills are as frequent as in other studies
        if self._disk:
            kinds += [FULL, READ_ONLY]
        kind = self._rng.choice(kinds)
        if kind in (WORKER, NODE) and not can_kill_worker:
            return DRIVER
        return kind

    def _wait_for_moment(self, out: Path, driver: Driver) -> bool:
        """Wait for a random moment. Return False if the driver ended earlier."""
        now = self._scenario.progress(out)
        last = self._scenario.steps - 1
        # On average, the interruptions that are left divide the remaining steps into equal parts.
        max_steps = max(0, 2 * (last - now) // (self._num_kills_left + 1))
        until = min(last, now + self._rng.randint(0, max_steps))
        while self._scenario.progress(out) < until and driver.process.poll() is None:
            time.sleep(0.02)
        # Interrupt within a step, or, if no step is awaited, while the command starts.
        max_seconds = self._scenario.step_seconds if until > now else START_SECONDS
        time.sleep(self._rng.uniform(0, max_seconds))
        return driver.process.poll() is None

    def _kill_worker(self, driver: Driver) -> int:
        """Kill a worker that runs a trial. Return the number of killed workers, 0 or 1."""
        leader = self._cluster.leader if self._cluster else driver.process.pid
        for pid in session(leader):
            with contextlib.suppress(OSError):  # the process has ended
                title = Path(f"/proc/{pid}/cmdline").read_text()
                if re.match(r"ray::(JobWorker|FakeTrial)", title):
                    os.kill(pid, signal.SIGKILL)
                    return 1
        return 0  # no worker has started yet

    def _refuse_writes(self, kind: str, disk: Disk, driver: Driver) -> int:
        """Refuse all writes until the command ends. Return its exit status."""
        self._may_fail = True
        if kind == FULL:
            disk.fill()
        else:
            disk.protect()
        try:
            return driver.wait(COMMAND_SECONDS)
        finally:
            if kind == FULL:
                disk.free()
            else:
                disk.unprotect()

    def _kill_node(self) -> int:
        """Kill a random node and add another. Return 1, the number of killed nodes."""
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


def _differing(results: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of the results that differ from the expected ones, or exist on one side only."""
    names = {**results, **expected}
    return [name for name in names if results.get(name) != expected.get(name)]


def mount_disk(path: Path) -> Disk | None:
    """Mount a small file system at `path`. Return None if mounting is not allowed."""
    try:
        return Disk(path, 64 * MIB)
    except (OSError, subprocess.CalledProcessError):
        path.rmdir()  # the mount point
        return None


def main() -> int:
    """Interrupt all studies. Return the exit status: 1 if a result was lost or differs."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--studies", type=int, default=10, help="studies whose trials do not train")
        parser.add_argument("--real", type=int, default=0, help="studies that train")
        parser.add_argument("--kills", type=int, default=4, help="interruptions per study")
        parser.add_argument("--seed", type=int, default=0, help="seed of the times and kinds")

    args = arguments(__doc__, add)
    # Raise an exception on SIGTERM, so that context managers stop all started processes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if args.quick:
        args.studies = 1
        args.real = 0
        args.kills = 1
    counts: dict[str, list[Count]] = {"one trial at a time": [], "on three nodes": [], "real": []}
    runs_on_cluster = [number % 3 == 2 for number in range(args.studies)]  # every third study
    with ExitStack() as stack:
        cluster = None
        if any(runs_on_cluster):
            cpus_of_nodes = [1] * NUM_NODES
            cluster = stack.enter_context(Cluster(*cpus_of_nodes))
        for number in range(args.studies + args.real):
            seed = number % 2 + 1  # two seeds, so that few uninterrupted studies are needed
            rng = random.Random(f"{args.seed} {number}")
            if number >= args.studies:
                group = "real"
                study = InterruptedStudy(real_study(seed), rng, args.kills)
            elif runs_on_cluster[number]:
                group = "on three nodes"
                # Random settings do not depend on the order in which concurrent trials end.
                study = InterruptedStudy(fake_study(seed, "random"), rng, args.kills, cluster)
            else:
                group = "one trial at a time"
                study = InterruptedStudy(fake_study(seed, "tpe"), rng, args.kills)
            count = study.run()
            counts[group].append(count)
            _print_study(number, group, count)
    return _print_table(args, {group: each for group, each in counts.items() if each})


def _print_study(number: int, group: str, count: Count) -> None:
    """Print what happened to a study, when it has finished."""
    kills = ", ".join(f"{times} x {kind}" for kind, times in count.kills.items())
    lost = {kind: times for kind, times in count.losses.items() if times}
    print(f"study {number} ({group}), {count.seconds:.0f} s: {kills}; lost: {lost or 'nothing'}", flush=True)


def _print_table(args: argparse.Namespace, counts: dict[str, list[Count]]) -> int:
    """Print the table and write --json. Return the exit status."""
    print(describe(1))
    rows: list[tuple[object, ...]] = []
    total_losses = 0
    for group, each in counts.items():
        num_commands = sum(count.statuses.total() for count in each)
        num_kills = [sum(count.kills[kind] for count in each) for kind in KINDS]
        num_finished = sum(count.finished for count in each)
        num_losses = [sum(count.losses[kind] for count in each) for kind in NO_LOSSES]
        total_losses += sum(num_losses)
        rows.append((group, len(each), num_commands, *num_kills, num_finished, *num_losses))
    print(table(("", "studies", "commands", *KINDS, "finished at kills", *NO_LOSSES), rows))
    durations = []
    for group, each in counts.items():
        seconds = [count.seconds for count in each]
        durations.append(f"{group} {min(seconds):.0f} to {max(seconds):.0f}")
    print("seconds per study: " + "; ".join(durations))
    write_json(args, {group: [vars(count) for count in each] for group, each in counts.items()})
    return 1 if total_losses else 0


if __name__ == "__main__":
    sys.exit(main())
