"""Run the study of `make demo` with ten seeds, and count how often each verdict results.

    python benchmarks/demo.py [--seeds 1 2 3] [--out DIR]
    python benchmarks/demo.py --show [--doc docs/measurements.md]

Protocol, fixed before the first run:

- Study s uses the options of `make demo`, with the search seed s and the final-test seeds 100 s + 1 to
  100 s + 8. `make demo` itself is study 1. So no two studies share a search seed or a final-test seed.
- The dataset `charts` was chosen because searches gain much on its classes. `suite:plots` has the same
  classes, and all its searches of 24 trials gained 3 to 8 points of H (claim.jsonl). So the result says
  nothing about other datasets. H is the harmonic mean of base and new accuracy.
- The options were chosen with images that `charts` does not contain, and with other seeds.
- The default settings are those of the published method.
- Goal: at least seven of ten studies end with "use the selected settings", and none with a significant
  loss. Installation and a study take at most five minutes on two free cores.

The file `demo.jsonl` contains the results, one line per study. Rerun the same command to run the missing
studies. Run nothing else on the machine, because the durations are recorded, too.
"""

import json
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common import ROOT, describe, machine, parser_of, publish, run_python, table

from prometar.metrics import Interval
from tune.records.folder import read_records
from tune.report.formatting import format_difference

RECORDS = Path(__file__).with_suffix(".jsonl")
SEEDS = range(1, 11)
NUM_PAIRS = 8
VERDICTS = {"selected": "use selected", "either": "use either", "baseline": "keep defaults"}


def make_demo_options() -> list[str]:
    """Return the options of `make demo`, from the Makefile."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (options,) = re.findall(r"^DEMO := ((?:.*\\\n)*.*)$", makefile, flags=re.MULTILINE)
    without_line_breaks = options.replace("\\\n", " ")  # a backslash continues the value on the next line
    return shlex.split(without_line_breaks)


def command(seed: int, out: Path) -> list[str]:
    """Return the words of a study's command after `python`.

    The options of `make demo` come first. If an option is repeated, the last value counts.
    """
    final_seeds = [str(100 * seed + number) for number in range(1, 1 + NUM_PAIRS)]
    return [
        "tune/search.py",
        *make_demo_options(),
        "--seed",
        str(seed),
        "--final-seeds",
        " ".join(final_seeds),
        "--study",
        f"demo-{seed}",
        "--out",
        str(out),
    ]


def measure(seed: int, out: Path) -> dict[str, Any]:
    """Run a study, or finish an interrupted one, and return its outcome."""
    start = time.perf_counter()
    run_python(*command(seed, out))
    seconds = round(time.perf_counter() - start)
    records = read_records(out / f"demo-{seed}")
    test = records.final_test
    assert test is not None
    (tested,) = test.datasets.values()
    return {
        "seed": seed,
        "verdict": test.verdict,
        "H": _interval(tested.difference),
        "base": _interval(tested.base_difference),
        "new": _interval(tested.new_difference),
        "trial": test.selected.number,
        "settings": dict(test.selected.settings),
        "seconds": seconds,
        "options": make_demo_options(),
        "machine": machine(),
    }


def _interval(difference: Interval | None) -> list[float] | None:
    """Return mean, lower bound, upper bound and n. None if the default settings were selected."""
    if difference is None:
        return None
    points = [round(value, 4) for value in (difference.mean, difference.low, difference.high)]
    return [*points, difference.n]


def read() -> list[dict[str, Any]]:
    """Return the recorded outcomes, in order of the seed."""
    if not RECORDS.exists():
        return []
    rows = [json.loads(line) for line in RECORDS.read_text("utf-8").splitlines()]
    return sorted(rows, key=lambda row: row["seed"])


def is_significant_loss(row: dict[str, Any]) -> bool:
    """Return True if the interval of the difference in H lies below 0."""
    if row["H"] is None:
        return False
    _mean, _low, high, _n = row["H"]
    return high < 0


def results(rows: Sequence[dict[str, Any]]) -> str:
    """Return a summary, and a table with one row per study."""
    selected = sum(row["verdict"] == "selected" for row in rows)
    losses = sum(is_significant_loss(row) for row in rows)
    # If the default settings were selected, there is no difference, so the gain is 0.
    gain = mean(row["H"][0] if row["H"] else 0.0 for row in rows)
    longest = max(row["seconds"] for row in rows)
    summary = (
        f'{describe(1, where=rows[0]["machine"])}. Of {len(rows)} studies, {selected} end with "use the '
        f'selected settings", {losses} with a significant loss. Mean gain: {gain:+.1f} points of H. '
        f"Longest study: {longest} s."
    )
    metrics = ("H", "base", "new")
    lines = []
    for row in rows:
        differences = [_format(row[metric]) for metric in metrics]
        lines.append((row["seed"], VERDICTS[row["verdict"]], *differences, row["seconds"]))
    head = ("seed", "verdict", *metrics, "seconds")
    return f"{summary}\n\n{table(head, lines)}"


def _format(values: list[Any] | None) -> str:
    """Format the result of `_interval`, "-" for None."""
    if values is None:
        return "-"
    return " ".join(format_difference(Interval(*values)))


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="search seeds of the studies")
    parser.add_argument("--out", type=Path, default=Path("out/demos"), help="folder of the studies")
    parser.add_argument("--show", action="store_true", help="print the table only")
    parser.add_argument("--doc", type=Path, help="document whose block `demo` is replaced")
    args = parser.parse_args()
    recorded = {row["seed"] for row in read()}
    missing = [] if args.show else [seed for seed in args.seeds if seed not in recorded]
    for seed in missing:
        row = measure(seed, args.out.resolve())
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        verdict = VERDICTS[row["verdict"]]
        print(f"seed {seed}: {verdict}, H {_format(row['H'])}, {row['seconds']} s", flush=True)
    rows = read()
    if rows:
        publish(results(rows), args.doc, "demo")
    else:
        print(f"{RECORDS} contains no study yet.")


if __name__ == "__main__":
    main()
