"""Overhead of a study: (wall clock x slots) / (sum of its trials' training time).

    python benchmarks/study.py [--trials 20] [--slots 2] [--repeats 3] [--quick] [--json FILE]

`python tune/search.py` on the embedded data set and backbone, 5 epochs a trial, one CPU a slot.
Training time is what the trials' records say: their epochs with the scoring that follows each. `search` is
the time from the first trial's begin to the last one's end, so it holds everything between trials, and the
slot that has nothing left to do at the end; `command` is the whole command, with the start of Python and Ray,
the start of the workers, the final comparison (whose training counts too) and the report.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
from common import Figures, arguments, describe, in_turn, median_of, table, tell, write_json

SEARCH = Path(__file__).parent.parent / "tune" / "search.py"


def measure(trials: int, epochs: int, slots: int) -> Figures:
    """Seconds of the command and of the search in it, and of training in both."""
    with TemporaryDirectory() as out:
        counts = {"--trials": trials, "--epochs": epochs, "--max-concurrent": slots}
        words = [str(word) for option in counts.items() for word in option]
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, str(SEARCH), *words, "--out", out], check=True, stdout=subprocess.DEVNULL
        )
        command = time.perf_counter() - began
        folder = Path(out) / "textures"
        storage = f"sqlite:///{folder / 'study.db'}"
        ran = optuna.load_study(study_name="textures", storage=storage).get_trials()
        records = [json.loads(path.read_text("utf-8")) for path in folder.glob("trials/*/record.json")]
        finals = json.loads((folder / "finals.json").read_text("utf-8"))
    first = min(t.datetime_start for t in ran if t.datetime_start)
    last = max(t.datetime_complete for t in ran if t.datetime_complete)
    sides = ("best",) if finals["same"] else ("best", "released")
    runs = [run["seconds"] for side in sides for run in finals[side]["runs"]]
    training = sum(record["seconds"] for record in records)
    return {
        "command": command,
        "search": (last - first).total_seconds(),
        "training": training,
        "training with finals": training + sum(runs),
    }


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--trials", type=int, default=20)
        parser.add_argument("--epochs", type=int, default=5)
        parser.add_argument("--slots", type=int, default=2, help="trials at a time")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return tell(measure(**args.side))
    if args.quick:
        args.repeats, args.trials, args.epochs = 1, 2, 1
    (rounds,) = in_turn([{"trials": args.trials, "epochs": args.epochs, "slots": args.slots}], args)
    print(describe(1))
    rows = []
    for what, training in (("search", "training"), ("command", "training with finals")):
        wall, sums = median_of(rounds, what), median_of(rounds, training)
        rows.append((what, args.trials, args.slots, wall, sums, wall * args.slots / sums))
    print(table(("of the", "trials", "slots", "wall clock s", "sum of training s", "overhead"), rows))
    return write_json(args, [rounds])


if __name__ == "__main__":
    main()
