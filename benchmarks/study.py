"""Overhead of a study: (wall clock x slots) / (sum of training times of its trials).

    python benchmarks/study.py [--trials 20] [--epochs 5] [--slots 2] [--repeats 3] [--quick] [--json FILE]

Runs `python tune/search.py` on `textures` with `mini`. A slot runs one trial at a time. Training time is the
sum of `seconds` in the trial records, which includes the scoring after each epoch. `search` is the time from
the start of the first trial to the end of the last one, including idle slots at the end. `command` is the
whole command, including the start of Python, Ray and workers, the confirmation, the final test and the
report. Its training time includes the runs of the confirmation and the final test.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import ROOT, Figures, arguments, describe, in_turn, median_of, print_figures, table, write_json

from prometar.environment import num_cpus
from tune.records.folder import read_records

SEARCH = ROOT / "tune" / "search.py"


def measure(trials: int, epochs: int, slots: int) -> Figures:
    """Return the seconds of the command, of its search, and of training in both."""
    with TemporaryDirectory() as out:
        command = [sys.executable, str(SEARCH), "--dataset", "textures", "--out", out]
        command += ["--trials", str(trials), "--epochs", str(epochs), "--max-concurrent", str(slots)]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        command_seconds = time.perf_counter() - start
        records = read_records(Path(out) / "textures")
    assert records.final_test is not None
    assert records.confirmation is not None
    later_runs = [*records.confirmation.fresh_runs, *records.final_test.runs()]
    first_start = min(trial.started for trial in records.trials if trial.started)
    last_end = max(trial.ended for trial in records.trials if trial.ended)
    training_seconds = sum(trial.seconds for trial in records.trials)
    return {
        "command": command_seconds,
        "search": (last_end - first_start).total_seconds(),
        "training": training_seconds,
        "training with finals": training_seconds + sum(run.seconds or 0.0 for run in later_runs),
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=20, help="trials per study")
        parser.add_argument("--epochs", type=int, default=5, help="epochs per trial")
        parser.add_argument("--slots", type=int, default=2, help="concurrent trials")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        print_figures(measure(**args.side))
        return
    if args.quick:
        args.repeats = 1
        args.trials = 2
        args.epochs = 1
    (rounds,) = in_turn([{"trials": args.trials, "epochs": args.epochs, "slots": args.slots}], args)
    print(describe(threads=max(1, num_cpus() // args.slots)))  # a trial uses its share of the CPUs
    rows = []
    for part, training in (("search", "training"), ("command", "training with finals")):
        wall_seconds = median_of(rounds, part)
        training_seconds = median_of(rounds, training)
        overhead = wall_seconds * args.slots / training_seconds
        rows.append((part, args.trials, args.slots, wall_seconds, training_seconds, overhead))
    print(table(("part", "trials", "slots", "wall clock s", "sum of training s", "overhead"), rows))
    write_json(args, [rounds])


if __name__ == "__main__":
    main()
