"""Measure what a search is worth: selected minus default settings on test images.

    python benchmarks/claim.py [--sets NAME ...] [--searches 5] [--arms NAME ...] [--out DIR]
    python benchmarks/claim.py --show [--doc docs/results.md]

Each search is `python tune/search.py` with its own seed on one dataset. The selected and the default settings
are trained with the same fresh seeds and tested. By default the datasets are those that no method was
developed on. The same command resumes. Outcomes are stored in benchmarks/claim.jsonl, one line per search.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from common import CLAIM, ROOT, WORSE, describe, machine, mean_and_interval, parser_of, publish, table

from tune.records.folder import StudyFolder, paired

RECORDS = Path(__file__).with_suffix(".jsonl")
ARMS: Mapping[str, Sequence[str]] = {
    "default": [],
    "TPE, base validation": [
        "--objective", "base_val", "--sampler", "tpe", "--space", "full", "--pruner", "none", "--top", "0"
    ],
}  # fmt: skip
PAIRS = 5
FIGURES = ("H", "base", "new")


def search(dataset: str, arm: str, number: int, out: Path, root: str | None) -> dict[str, Any]:
    """Run a search of 24 trials of 5 epochs, and read what its selection is worth."""
    name = f"{dataset.replace(':', '.')}-{list(ARMS).index(arm)}-{number}"
    first = 1000 * (number + 1) + 1  # all arms of a number share the final seeds
    seeds = " ".join(map(str, range(first, first + PAIRS)))
    command = [
        sys.executable, "tune/search.py", "--dataset", dataset, "--backbone", "mini", "--epochs", "5",
        "--trials", "24", "--study", name, "--out", str(out), "--seed", str(100 * number),
        "--final-seeds", seeds, *ARMS[arm], *(["--data-root", root] if root else []),
    ]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH"))))
    started = time.perf_counter()
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stdout[-2000:]}")
    finals = StudyFolder(out / name).read_final_test()
    assert finals is not None
    runs = finals.datasets[dataset]
    gains = dict.fromkeys(FIGURES, 0.0)
    if not finals.same:
        gains = {
            key: mean(
                getattr(a, key) - getattr(b, key) for a, b in zip(runs.selected, runs.baseline, strict=True)
            )
            for key in ("base", "new")
        } | {"H": mean(paired(runs.selected, runs.baseline).values())}
    return {
        "dataset": dataset,
        "arm": arm,
        "search": number,
        "kept": finals.same,
        **gains,
        "settings": dict(finals.selected.settings),
        "pairs": len(finals.seeds),
        "seconds": round(time.perf_counter() - started),
        "machine": machine(),
    }


def read() -> list[dict[str, Any]]:
    """Return the outcomes that are stored."""
    return [json.loads(line) for line in RECORDS.read_text("utf-8").splitlines()] if RECORDS.exists() else []


def over_sets(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    """Return the mean over searches for each dataset."""
    names = sorted({row["dataset"] for row in rows})
    return [mean(row[key] for row in rows if row["dataset"] == name) for name in names]


def results(rows: Sequence[dict[str, Any]]) -> str:
    """One row per arm: mean gains with intervals over datasets, and how often the selection is worse."""
    lines = []
    for arm in dict.fromkeys(row["arm"] for row in rows):
        mine = [row for row in rows if row["arm"] == arm]
        gains = (mean_and_interval(over_sets(mine, key)) for key in FIGURES)
        worse = f"{100 * mean(row['H'] < WORSE for row in mine):.0f} %"
        kept = f"{100 * mean(row['kept'] for row in mine):.0f} %"
        lines.append((arm, *gains, worse, kept, len({row["dataset"] for row in mine}), len(mine)))
    head = ("search", *FIGURES, "worse by more than 0.5", "default settings kept", "datasets", "searches")
    return table(head, lines)


def by_set(rows: Sequence[dict[str, Any]]) -> str:
    """One row per arm and dataset: the gain in H of each search."""
    pairs = sorted({(row["arm"], row["dataset"]) for row in rows})
    gains = {pair: [row["H"] for row in rows if (row["arm"], row["dataset"]) == pair] for pair in pairs}
    return table(
        ("search", "dataset", "H", "one by one"),
        [(*pair, mean_and_interval(hs), " ".join(f"{h:+.1f}" for h in hs)) for pair, hs in gains.items()],
    )


def show(doc: Path | None) -> None:
    """Print the tables of all outcomes."""
    rows = read()
    if not rows:
        raise SystemExit(f"error: {RECORDS.name} is empty. Run benchmarks/claim.py.")
    machines = "; ".join(dict.fromkeys(describe(threads=1, where=row["machine"]) for row in rows))
    head = (
        f"{machines}. Selected minus default settings, points on test images, {rows[0]['pairs']} seed pairs."
    )
    publish("\n\n".join((head, results(rows), by_set(rows))), doc, "claim")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sets", nargs="+", default=CLAIM)
    parser.add_argument("--data-root", help="of datasets that do not come with the project")
    parser.add_argument("--searches", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("out/claim"), help="folder of the studies")
    parser.add_argument("--show", "--quick", action="store_true", help="print the tables, run nothing")
    parser.add_argument("--doc", type=Path, help="document whose block `claim` gets the tables")
    args = parser.parse_args()
    done = {(row["dataset"], row["arm"], row["search"]) for row in read()}
    searches = range(1, args.searches + 1)
    todo = [(d, a, n) for n in searches for d in args.sets for a in args.arms if (d, a, n) not in done]
    for dataset, arm, number in [] if args.show else todo:
        row = search(dataset, arm, number, args.out.resolve(), args.data_root)
        with RECORDS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{dataset}, {arm}, search {number}: {row['H']:+.2f} ({row['seconds']} s)", flush=True)
    show(args.doc)


if __name__ == "__main__":
    main()
