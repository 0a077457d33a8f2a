"""Overhead of a study: (wall clock x slots) / (sum of training times of its trials).

    python benchmarks/study.py [--trials 20] [--slots 2] [--repeats 3] [--quick] [--json FILE]

Runs `python tune/search.py` on `textures` with `mini` and five epochs per trial. A slot runs one trial at
a time. Training time is that of the trial records, including the scoring after each epoch. `search` is the
time from the start of the first trial to the end of the last one, including idle slots at the end. `command`
is the whole command, including the start of Python, Ray and workers, the confirmation, the final test and
the report. Its training time includes the runs of the confirmation and the final test.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from common import ROOT, Figures, arguments, describe, in_turn, median_of, print_figures, table, write_json

from tune.records.folder import read_records

SEARCH = ROOT / "tune" / "search.py"


def measure(trials: int, epochs: int, slots: int) -> Figures:
    """Return the seconds of the command, of its search, and of training in both."""
    with TemporaryDirectory() as out:
        options = {"--dataset": "textures", "--trials": trials, "--epochs": epochs, "--max-concurrent": slots}
        words = [str(word) for option in options.items() for word in option]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, str(SEARCH), *words, "--out", out], check=True, stdout=subprocess.DEVNULL
        )
        command = time.perf_counter() - began
        records = read_records(Path(out) / "textures")
    test = records.final_test
    confirmation = records.confirmation
    assert test is not None
    assert confirmation is not None
    tested = test.datasets["textures"]
    runs = [*tested.selected, *(() if test.baseline_selected else tested.baseline)]
    searched = set(records.config.search.seeds)
    runs += [run for row in confirmation.candidates for run in row.runs if run.seed not in searched]
    first = min(trial.started for trial in records.trials if trial.started)
    last = max(trial.ended for trial in records.trials if trial.ended)
    training = sum(trial.seconds for trial in records.trials)
    return {
        "command": command,
        "search": (last - first).total_seconds(),
        "training": training,
        "training with finals": training + sum(run.seconds or 0.0 for run in runs),
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=20, help="trials per study")
        parser.add_argument("--epochs", type=int, default=5, help="epochs per trial")
        parser.add_argument("--slots", type=int, default=2, help="concurrent trials")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return print_figures(measure(**args.side))
    if args.quick:
        args.repeats = 1
        args.trials = 2
        args.epochs = 1
    (rounds,) = in_turn([{"trials": args.trials, "epochs": args.epochs, "slots": args.slots}], args)
    print(describe(1))
    rows = []
    for what, training in (("search", "training"), ("command", "training with finals")):
        wall = median_of(rounds, what)
        sums = median_of(rounds, training)
        rows.append((what, args.trials, args.slots, wall, sums, wall * args.slots / sums))
    print(table(("part", "trials", "slots", "wall clock s", "sum of training s", "overhead"), rows))
    return write_json(args, [rounds])


if __name__ == "__main__":
    main()
