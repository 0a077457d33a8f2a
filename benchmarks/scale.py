"""A study of many trials on a cluster of many nodes, with trials that replay recorded learning curves.

    python benchmarks/scale.py [--trials 1000] [--nodes 16] [--slots 4] [--seconds 4] [--minutes 20]
        [--kill-every SECONDS] [--quick] [--json FILE]

The driver is a study's own, with its files and its SQLite; the nodes are Ray's own processes, all on this
machine; only the workers do not train: an epoch sleeps for some `--seconds`, five are a trial. No trial is
begun after `--minutes`. With `--kill-every` a node dies at once, and another is started, all the time.
`delay` is from the end of a slot's last epoch to the begin of its next trial's first one; slots `idle` while
no epoch runs in them, counted from when all slots have begun to when the last trial has.
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import threading
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from typing import Any

from common import Figures, arguments, describe, in_turn, table, tell, write_json
from nodes import Meter, Nodes
from replay import EPOCHS, SECONDS, SPACE, STEPS, Replay, Step, read_steps

HERE = Path(__file__).parent
NAME = "s"
KINDS = ("ask", "report", "tell")


def drive(address: str, out: str, trials: int, nodes: int, minutes: float) -> Figures:
    """The study's driver, in a process of its own: what it has measured of itself, and what is kept."""
    from clocks import ASK, PAGE, REPORT, RETRY, TELL, WAITING, Clocks
    from rich.console import Console
    from tune.study_spec import StudySpec

    from prometar.config.settings import configure
    from prometar.distributed.local_ray import start_ray
    from prometar.distributed.placement import Shares
    from tune.space.spaces import load_space
    from tune.study import Place, run_study

    end = time.monotonic() + 300
    while len(found := start_ray(address=address)) <= nodes:
        if time.monotonic() > end:
            raise SystemExit(f"{len(found) - 1} of {nodes} nodes have joined")
        time.sleep(1)
    config = configure("prometar", {"train.epochs": EPOCHS})
    spec = StudySpec(
        config=config, space=load_space(SPACE), objective="drift", seed=1, pruner="median",
        val_per_class=20, trials=trials, final_seeds=(), top=0,
    )  # fmt: skip
    clocks = Clocks(stretch=max(1, trials // 10))
    with Path(out, "printed.log").open("w") as log:
        place = Place(Path(out), NAME, Shares(), address=address, max_hours=minutes / 60)
        run_study(spec, place, trainable=Replay, console=Console(file=log, width=200))
    calls = {kind: sum(row.get(kind, 0) for row in clocks.calls) for kind in (ASK, REPORT, TELL, RETRY)}
    stretches = [
        {
            "seconds": seconds,
            "cpu": cpu,
            "own": own,
            "calls": called,
            "mib": mib,
            "busy": 1 - own.get(WAITING, 0.0) / seconds,
            "ms": {kind: 1000 * whole[kind] / called[kind] for kind in (ASK, REPORT, TELL) if kind in called},
        }
        for (seconds, cpu), own, whole, called, mib in zip(
            clocks.seconds, clocks.own, clocks.whole, clocks.calls, clocks.mib, strict=True
        )
    ]
    return {
        "calls": calls,
        "stretches": stretches,
        "stretch": max(1, trials // 10),
        "peak mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "report.html s": sum(row.get(PAGE, 0.0) for row in clocks.whole),
        **kept(Path(out) / NAME),
    }


def kept(folder: Path) -> Figures:
    """What a study has of its trials, and what it has lost."""
    import optuna
    from tune.optimizer.trial_counts import REPEAT

    database = folder / "study.db"
    ran = optuna.load_study(study_name=NAME, storage=f"sqlite:///{database}").get_trials()
    found = [t for t in ran if REPEAT not in t.user_attrs]
    states = Counter(t.state.name for t in found)
    records = {path.parent.name for path in folder.glob("trials/*/record.json")}
    replays = {int(p.parent.name): json.loads(p.read_text()) for p in folder.glob("trials/*/replay.json")}
    whole = {number for number, epochs in replays.items() if epochs[-1]["finished"]}
    complete = {t.number for t in found if t.state.name == "COMPLETE"}
    told = {t.number: len(t.intermediate_values) for t in found}
    settings = Counter(json.dumps(t.params, sort_keys=True) for t in found)
    return {
        "trials begun": len(found),
        "complete": states["COMPLETE"],
        "pruned": states["PRUNED"],
        "failed": states["FAIL"],
        "left running": states["RUNNING"] + states["WAITING"],
        "lost": len(whole - complete),
        "epochs lost": sum(max(0, told[n] - len(replays.get(n, ()))) for n in told),
        "without record": sum(f"{t.number:04d}" not in records for t in found if t.state.is_finished()),
        "drawn twice": sum(count - 1 for count in settings.values()),
        "database KiB a trial": database.stat().st_size / 1024 / len(found),
    }


def slots_of(workers: dict[str, list[Step]], num_slots: int) -> Figures:
    """How the slots were used, from the workers' logs."""
    firsts = [step.begin for steps in workers.values() for step in steps if step.epoch == 1]
    begins = sorted(steps[0].begin for steps in workers.values())
    begin, end = begins[:num_slots][-1], max(firsts)
    delays, gaps, busy = list[float](), list[float](), 0.0
    for steps in workers.values():
        busy += sum(max(0.0, min(s.end, end) - max(s.begin, begin)) for s in steps)
        for last, step in pairwise(steps):
            if begin <= last.end and step.begin <= end:
                (gaps if step.trial == last.trial else delays).append(step.begin - last.end)
    epochs = Counter((step.trial, step.epoch) for steps in workers.values() for step in steps)
    started = [first for first in firsts if begin <= first <= end]
    inside = sum(begin <= step.end <= end for steps in workers.values() for step in steps)
    took = max(end - begin, 1e-9)
    return {
        "window": [begin, end],
        "workers": len(workers),
        "delays": delays,
        "gaps": gaps,
        "busy s": busy,
        "trials a minute": 60 * len(started) / took,
        "results a second": inside / took,
        "epochs trained twice": sum(count - 1 for count in epochs.values()),
    }


def run_case(case: Figures, args: argparse.Namespace) -> Figures:
    """One study on a cluster of its own."""
    load = os.getloadavg()[0]
    with TemporaryDirectory() as out:
        steps = Path(out, "steps")
        steps.mkdir()
        path = os.pathsep.join(filter(None, (str(HERE), os.environ.get("PYTHONPATH"))))
        env = {"PYTHONPATH": path, SECONDS: str(case["seconds"]), STEPS: str(steps)}
        before = dict(os.environ)
        with Nodes(case["nodes"], case["slots"], env) as nodes:
            os.environ.update(nodes.env)
            meter, over = Meter(nodes), threading.Event()
            meter.start()
            killer = Killer(nodes, case["kill every"], steps, over)
            killer.start()
            side = {"address": nodes.address, "out": out, "minutes": case["minutes"]}
            try:
                ((figures,),) = in_turn([{**side, "trials": case["trials"], "nodes": case["nodes"]}], args)
            finally:
                over.set()
                killer.join()
                meter.stop()
        os.environ.clear()
        os.environ.update(before)
        used = slots_of(read_steps(steps), case["nodes"] * case["slots"])
    return {
        **case, **figures, **used,
        "load before": load, "killed": killer.killed, "cores": meter.cores(*used["window"]),
        "mib": meter.mib, "processes": meter.counts,
    }  # fmt: skip


class Killer(threading.Thread):
    """Kills a node every so many seconds, once the trials have begun, and starts another."""

    def __init__(self, nodes: Nodes, every: float | None, steps: Path, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._nodes, self._every, self._steps, self._over = nodes, every, steps, over
        self._rng = random.Random(0)
        self.killed = 0

    def run(self) -> None:
        if self._every is None:
            return
        while not any(self._steps.iterdir()):
            if self._over.wait(0.5):
                return
        while not self._over.wait(self._every):
            self._nodes.kill(self._rng.choice(self._nodes.live))
            self.killed += 1
            self._nodes.add()


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=1000)
        parser.add_argument("--nodes", type=int, default=16)
        parser.add_argument("--slots", type=int, default=4, help="trials at a time on a node")
        parser.add_argument("--seconds", type=float, default=4.0, help="mean length of an epoch")
        parser.add_argument("--minutes", type=float, default=20.0, help="after which no trial is begun")
        parser.add_argument("--kill-every", type=float, help="seconds between two deaths of nodes")

    args = arguments(__doc__, add, repeats=1)
    if args.side:
        return tell(drive(**args.side))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes are ended too
    case = {key: getattr(args, key) for key in ("trials", "nodes", "slots", "seconds", "minutes")}
    cases = [{**case, "kill every": args.kill_every}]
    if args.quick:
        small = {"trials": 30, "nodes": 2, "slots": 2, "seconds": 0.3, "minutes": 1.0}
        cases = [{**small, "kill every": None}, {**small, "kill every": 8.0}]
    rounds = [[run_case(case, args)] for case in cases]
    print(describe(1))
    for ((figures,),) in zip(rounds, strict=True):
        show(figures)
    return write_json(args, rounds)


def show(f: Figures) -> None:
    """A study's figures as tables."""
    slots = f["nodes"] * f["slots"]
    spot = f"; {f['killed']} nodes killed" if f["kill every"] else ""
    print(f"\n{f['trials begun']} trials on {f['nodes']} nodes x {f['slots']} slots{spot}; "
          f"load before {f['load before']:.1f}")  # fmt: skip
    begin, end = f["window"]
    rows: list[tuple[Any, ...]] = [
        ("seconds, from all slots at work to the last trial's begin", end - begin),
        ("trials a minute", f["trials a minute"]),
        ("results a second", f["results a second"]),
        ("slots' idle share", 1 - f["busy s"] / (slots * (end - begin))),
        *((f"delay to the next trial, {name} s", value) for name, value in spread(f["delays"])),
        *((f"delay to the next epoch, {name} s", value) for name, value in spread(f["gaps"])),
        ("driver's peak memory, MiB", f["peak mib"]),
        ("driver's memory a trial, KiB", growth(f)),
        ("database a trial, KiB", f["database KiB a trial"]),
        ("report.html s", f["report.html s"]),
        *((f"memory of {kind} MiB ({f['processes'][kind]} processes)", f["mib"][kind]) for kind in f["mib"]),
        *((f"cores used by {kind}", cores) for kind, cores in f["cores"].items()),
        *((name, f[name]) for name in ("complete", "pruned", "failed", "left running", "lost",
          "epochs lost", "without record", "drawn twice", "epochs trained twice")),
        ("retries", f["calls"]["retry"]),
    ]  # fmt: skip
    print(table(("of the whole", "value"), rows))
    rows = [
        (k * f["stretch"], s["busy"], 1000 * s["cpu"] / s["calls"]["tell"], *s["ms"].values(), s["mib"])
        for k, s in enumerate(f["stretches"])
        if len(s["ms"]) == len(KINDS)
    ]
    head = ("trials behind", "driver busy", "CPU ms a trial", *(f"{kind} ms" for kind in KINDS), "MiB")
    print(table(head, rows))
    shares = Counter[str]()
    for stretch in f["stretches"]:
        shares.update(stretch["own"])
    total = shares.total() - shares["report.html"]
    print(table(("the driver's time", "share %", "ms a trial"),
                [(kind, 100 * seconds / total, 1000 * seconds / f["trials begun"])
                 for kind, seconds in shares.most_common() if kind != "report.html"]))  # fmt: skip


def spread(values: list[float]) -> list[tuple[str, float]]:
    if len(values) < 2:
        return []
    return [("median", median(values)), ("95 %", quantiles(values, n=20)[-1]), ("most", max(values))]


def growth(f: Figures) -> float:
    """KiB a trial of the driver's memory, over the later half of the trials."""
    mib = [s["mib"] for s in f["stretches"]]
    first = len(mib) // 2
    steps = len(mib) - 1 - first
    return 1024 * (mib[-1] - mib[first]) / (steps * f["stretch"]) if steps > 0 else float("nan")


if __name__ == "__main__":
    main()
