"""What a search is worth: chosen minus released settings on the test images of sets nobody has looked at.

    python benchmarks/claim.py --claim [--sets shapes ...] [--searches 5] [--arms ...] [--out DIR]
    python benchmarks/claim.py --sets dtd --data-root DIR [--searches 2] [--arms ...]
    python benchmarks/claim.py --show [--doc docs/results.md] [--plot docs/claim.svg]

Each search is `python tune/search.py` with its own seed, at its default budget, on one data set. Its choice
and the released settings are trained with the same fresh seeds and tested. Six arms share that: the search
as it is by default; the same without the portfolio; random draws scored on held-out base classes, and Ray
Tune with Optuna's TPE on base validation accuracy, where the highest score is taken; no search, but the
one setting of the portfolio that did best on the development sets, if it scores above the released ones; and
the default without the portfolio that starts from what searches on three development sets have scored, as
any user can who has searched before (no test image is read for that). The same command goes on with what is
unfinished. Development sets need no --claim, and have a table of their own, as have photographs.
The outcomes are kept in benchmarks/claim.jsonl, one line a search, which --show reads.
"""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from claim_plot import draw
from common import ROOT, WORSE, describe, machine, parser_of, publish, require_development, table
from records import mean_and_interval

from prometar.bundled.suite import SUITE
from prometar.io.files import write_atomically
from prometar.metrics import t_interval
from tune.reporting.track_record import TrackRecord
from tune.results.reader import paired
from tune.results.schema import FINAL_TEST
from tune.space.portfolio import shipped

RECORDS = Path(__file__).with_suffix(".jsonl")
SHIPPED = ROOT / "tune/reporting/track_record.json"
_PLAIN = ["--space", "full", "--pruner", "none", "--top", "0"]
ARMS: Mapping[str, Sequence[str]] = {
    "default": [],
    "without the portfolio": ["--portfolio", "0"],
    "TPE, base validation": ["--objective", "base_val", "--sampler", "tpe", *_PLAIN],
    "portfolio's best alone": ["--enqueue", "BEST", "--portfolio", "0", "--trials", "2", "--top", "0"],
    "after three searches": ["--portfolio", "0", "--warm-start", "EARLIER"],
}
EARLIER = ("flags", "cells", "leaves")
"""Data sets on which has been searched before."""
OF_OLD = (
    "earlier default",
    "earlier, without the portfolio",
    "after three searches, wider starts",
    "after three searches, surer promises",
)
"""As it was. The first two: by leads of the last round alone, and what those of the best-scored had been
worth. Then with starts for weights of the model that were drawn as uncertain as they are, and with large
promises as sure as small ones."""
SHOWN = (*ARMS, *OF_OLD)
PLOTTED = tuple(ARMS)
PAIRS = 5
FIGURES = ("H", "base", "new")
DEVELOPMENT = (
    "On the development sets, each with the portfolio of the other three. What the default takes a lead to "
    "be worth was fitted on all four, so this is no claim:"
)
PHOTOGRAPHS = (
    "On photographs of ten classes of DTD, where nothing is known from elsewhere and the default has no "
    "portfolio:"
)
GOAL = 1.0


def final_seeds(number: int) -> range:
    """Of a search by its number: the arms of a number share them, the next number has others."""
    return range(1000 * (number + 1) + 1, 1000 * (number + 1) + 1 + PAIRS)


def search(dataset: str, arm: str, number: int, out: Path, root: str | None) -> dict[str, Any]:
    """Run a search to its end, and read what its choice is worth; `root`: of photographs."""
    name = f"{dataset}-{list(ARMS).index(arm)}-{number}"
    stands_for = {"BEST": portfolios_best, "EARLIER": searched_before}
    options = [
        each
        for word in ARMS[arm]
        for each in (map(str, stands_for[word](dataset, out)) if word in stands_for else [word])
    ]
    started, code = time.perf_counter(), commit()
    seeds = " ".join(map(str, final_seeds(number)))
    if root is not None:
        options += ["--data-root", root]
    run(dataset, name, out, "--seed", str(100 * number), "--final-seeds", seeds, *options)
    finals = FINAL_TEST.read(out / name / "finals.json")
    runs = finals.datasets[dataset]
    gains = {
        key: mean(getattr(a, key) - getattr(b, key) for a, b in zip(runs.best, runs.released, strict=True))
        for key in ("base", "new")
    }
    return {
        "dataset": dataset,
        "arm": arm,
        "search": number,
        "kept": finals.same,
        "H": 0.0 if finals.same else mean(paired(runs.best, runs.released).values()),
        **({"base": 0.0, "new": 0.0} if finals.same else gains),
        "settings": dict(finals.best.settings),
        "pairs": len(finals.seeds),
        "seconds": round(time.perf_counter() - started),
        "machine": machine(),
        "commit": code,
    }


def run(dataset: str, name: str, out: Path, *options: str) -> None:
    """A search of 24 trials of 5 epochs, unless `options` say otherwise."""
    command = [
        sys.executable, "tune/search.py", "--dataset", dataset, "--backbone", "mini", "--epochs", "5",
        "--trials", "24", "--study", name, "--out", str(out), *options,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stdout[-2000:]}")


def portfolios_best(dataset: str, out: Path) -> list[Path]:
    """A file with the setting that did best on the data sets that the portfolio was measured on."""
    file = out / f"portfolio-without-{dataset}.json"
    write_atomically(file, json.dumps(shipped().choose(without=[dataset], size=1)).encode())
    return [file]


def searched_before(dataset: str, out: Path) -> list[Path]:
    """Studies on `EARLIER`, but on this one."""
    return [earlier(name, out) for name in EARLIER if name != dataset]


@cache
def earlier(dataset: str, out: Path) -> Path:
    """A study without the portfolio, a last round or a test; run where it has not ended."""
    name = f"earlier-{dataset}"
    run(dataset, name, out, "--portfolio", "0", "--top", "0", "--final-seeds", "")
    return out / name


def commit() -> str:
    """Of the code that searched: figures of different defaults are not to be mixed unseen."""
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()


def read() -> list[dict[str, Any]]:
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text("utf-8").splitlines()]


def over_sets(rows: Sequence[dict[str, Any]], key: str) -> list[float]:
    """The mean over searches of each data set."""
    names = sorted({row["dataset"] for row in rows})
    return [mean(row[key] for row in rows if row["dataset"] == name) for name in names]


def results(rows: Sequence[dict[str, Any]]) -> str:
    """Mean gains with intervals over data sets, and how often a choice is worse."""
    lines = []
    for arm in SHOWN:
        mine = [row for row in rows if row["arm"] == arm]
        if not mine:
            continue
        gains = (mean_and_interval(over_sets(mine, key), signed=True, digits=2) for key in FIGURES)
        shares = (lambda row: row["H"] < WORSE, lambda row: row["kept"], known_before)
        worse, kept, known = (f"{100 * mean(map(share, mine)):.0f} %" for share in shares)
        sets = len({row["dataset"] for row in mine})
        lines.append((arm, *gains, worse, kept, known, sets, len(mine)))
    gained = (*FIGURES, "worse by more than 0.5")
    return table(("search", *gained, "released kept", "from the portfolio", "sets", "searches"), lines)


def beside(rows: Sequence[dict[str, Any]]) -> str:
    """The other kinds of search minus the default one, where both have a data set and number; "" of none."""
    default = {(row["dataset"], row["search"]): row for row in rows if row["arm"] == "default"}
    lines = []
    for arm in SHOWN[1:]:
        mine = [row for row in rows if row["arm"] == arm and (row["dataset"], row["search"]) in default]
        if not mine:
            continue
        minus = [
            {**row, **{key: row[key] - default[row["dataset"], row["search"]][key] for key in FIGURES}}
            for row in mine
        ]
        cells = (mean_and_interval(over_sets(minus, key), signed=True, digits=2) for key in FIGURES)
        each = " ".join(f"{row['dataset']} {row['H']:+.1f}" for row in minus)
        lines.append((arm, *cells, len({row["dataset"] for row in mine}), each))
    return table(("minus the default search", *FIGURES, "sets", "H one by one"), lines) if lines else ""


def known_before(row: Mapping[str, Any]) -> bool:
    """Whether what a search chose are settings of the portfolio."""
    return any(row["settings"] == each.settings for each in shipped().known)


def by_set(rows: Sequence[dict[str, Any]]) -> str:
    """The default search's gain in H on each data set, search by search."""
    lines = []
    for name in sorted({row["dataset"] for row in rows}):
        mine = [row["H"] for row in rows if row["dataset"] == name and row["arm"] == "default"]
        if mine:
            lines.append(
                (name, mean_and_interval(mine, signed=True, digits=2), " ".join(f"{h:+.1f}" for h in mine))
            )
    return table(("data set", "mean", "searches"), lines)


def purpose_of(dataset: str) -> str:
    return SUITE[dataset].purpose if dataset in SUITE else "photographs"


def goal(rows: Sequence[dict[str, Any]]) -> str:
    """Whether what was aimed at holds, in a sentence."""
    mine = [row for row in rows if row["arm"] == "default"]
    interval = t_interval(over_sets(mine, "H"))
    worse = mean(row["H"] < WORSE for row in mine) if mine else 0.0
    if interval is None:
        return f"The goal (mean above +{GOAL}, interval above 0, worse in at most 10 %) cannot be judged yet."
    holds = interval.mean > GOAL and interval.low > 0 and worse <= 0.1
    return (
        f"The goal, a mean above +{GOAL} with its interval above 0 and worse in at most 10 % of searches, "
        f"{'holds' if holds else 'does not hold'}: {interval.mean:+.2f} ({interval.low:+.2f} .. "
        f"{interval.high:+.2f}), worse in {100 * worse:.0f} %."
    )


def track_record(rows: Sequence[dict[str, Any]]) -> TrackRecord | None:
    """What a report says of searches like its own; None of too few."""
    mine = [row for row in rows if row["arm"] == "default"]
    alone = over_sets([row for row in rows if row["arm"] == "portfolio's best alone"], "H")
    over = t_interval(over_sets(mine, "H"))
    if over is None or not alone:
        return None
    worse, kept = sum(row["H"] < WORSE for row in mine), sum(row["kept"] for row in mine)
    gain, low, high, best_alone = (round(x, 2) for x in (over.mean, over.low, over.high, mean(alone)))
    sets = len(over_sets(mine, "H"))
    return TrackRecord(len(mine), sets, gain, low, high, worse, -WORSE, kept, best_alone)


def show(doc: Path | None, plot: Path | None) -> None:
    rows, development, photographs = (
        [row for row in read() if purpose_of(row["dataset"]) == purpose]
        for purpose in ("claim", "development", "photographs")
    )
    if not rows:
        raise SystemExit(f"error: {RECORDS.name} holds no search yet: run benchmarks/claim.py --claim")
    what = f"Chosen minus released, points on test images, {rows[0]['pairs']} paired seeds."
    counts = Counter(row["commit"] for row in rows)
    code = ", ".join(f"{name} ({count})" for name, count in counts.items())
    others = {row["machine"]["cpu"] for row in rows} - {rows[0]["machine"]["cpu"]}
    also = f" (some on {', '.join(sorted(others))})" if others else ""
    head = f"{describe(threads=1, where=rows[0]['machine'])}{also}. {what} Code of the searches: {code}."
    parts = [head, results(rows), beside(rows), by_set(rows), goal(rows)]
    if development:
        parts += [DEVELOPMENT, results(development), beside(development)]
    if photographs:
        parts += [PHOTOGRAPHS, results(photographs)]
    publish("\n\n".join(filter(None, parts)), doc, "claim")
    if plot is not None:
        draw(rows, PLOTTED, plot)
    if (found := track_record(rows)) is not None and doc is not None:
        write_atomically(SHIPPED, (json.dumps(asdict(found), indent=1) + "\n").encode())


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sets", nargs="+", help="[all that are kept for this]")
    parser.add_argument("--data-root", help="of photographs")
    parser.add_argument("--searches", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--out", type=Path, default=Path("out/claim"), help="the studies' folder")
    parser.add_argument("--claim", action="store_true", help="open the data sets that are kept for this")
    parser.add_argument("--show", action="store_true", help="print the table from the records")
    parser.add_argument("--doc", type=Path, help="a document whose block `claim` gets the tables")
    parser.add_argument("--plot", type=Path, help="an SVG file for the plot of all searches")
    parser.add_argument("--quick", action="store_true", help="print the table, run nothing")
    args = parser.parse_args()
    if args.show or args.quick:
        show(args.doc, args.plot)
        return
    sets = args.sets or [name for name, each in SUITE.items() if each.purpose == "claim"]
    done = {(row["dataset"], row["arm"], row["search"]) for row in read()}
    # Search by search: after an interruption there are whole rounds.
    for number in range(1, args.searches + 1):
        for dataset in sets:
            require_development([dataset], claim=args.claim)
            for arm in args.arms:
                if (dataset, arm, number) in done:
                    continue
                row = search(dataset, arm, number, args.out.resolve(), args.data_root)
                with RECORDS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                print(f"{dataset}, {arm}, search {number}: {row['H']:+.2f} ({row['seconds']} s)", flush=True)
    show(args.doc, args.plot)


if __name__ == "__main__":
    main()
