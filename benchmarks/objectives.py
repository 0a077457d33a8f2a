"""How well ways of scoring settings without a test image rank them by what they test.

    python benchmarks/objectives.py [--sets textures ...] [--settings 24] [--seeds 1 2 3] [--epochs 5]
        [--space recipe] [--out DIR] [--jobs 2] [--keep] [--quick]
    python benchmarks/objectives.py --show [--evidence FILE] [--doc docs/objectives.md] [--portfolio FILE]

The released settings and random draws of a space, each trained on all base classes and tested with several
seeds; what a search could have seen of the same prompts (validation images of base classes, drift on foreign
names, images of other data sets) is measured beside the test.
A way of scoring sees one seed and is judged by the tests of the others. Standard errors are of a bootstrap
over sets and settings. The same command goes on from the records in --out. Only development sets are read.
The figures are kept (--keep) in benchmarks/objectives.json, or the file that --evidence names, which --show
reads. Photographs have their own, since nothing of them is in what is known before a search:

    python benchmarks/objectives.py --sets dtd --data-root DIR --evidence benchmarks/photographs.json --keep
"""

import argparse
import json
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from choosing import choices, promise
from common import DEVELOPMENT, describe, parser_of, publish, require_development, table
from records import Record, Wanted, on_mini, read_all, run_all, run_options, seen_by_a_search
from scoring import BUDGET, DRIFT, WAYS, Evidence, Floats, Table, calibration, parts, results

from prometar.io.files import write_atomically
from tune.space.portfolio import shipped
from tune.space.spaces import load_space

EVIDENCE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class RandomDraws:
    """Values keyed by (search, trial, setting): a setting has the same one in every composition."""

    search: int
    trial: int

    def _rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.search, self.trial, zlib.crc32(name.encode())])

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if log:
            return float(np.exp(self._rng(name).uniform(np.log(low), np.log(high))))
        return float(self._rng(name).uniform(low, high))

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        return round(self.suggest_float(name, low, high, log=log))

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        return choices[self._rng(name).integers(len(choices))]


def settings_of(space: str, number: int) -> dict[str, Any]:
    """Number 0 is the released settings."""
    return load_space(space).draw(RandomDraws(0, number)) if number else {}


def drawn(found: Evidence) -> list[dict[str, Any]]:
    """All settings but the released ones."""
    return [settings_of(found.space, number) for number in range(1, found.settings + 1)]


def runs_of(args: argparse.Namespace, dataset: str) -> dict[tuple[int, int, str], Wanted]:
    """By setting, seed and way."""
    found = {}
    for seed in args.seeds:
        for number in range(args.settings + 1):
            here = partial(on_mini, settings_of(args.space, number), dataset, seed=seed, root=args.data_root)
            name = f"{dataset}/{args.space}-{number:03d}-seed{seed}"
            found[number, seed, "final"] = Wanted(name, here(epochs=args.epochs), signals=seen_by_a_search)
    return found


SEEN = (
    "base", "new", "zero_shot", "divergence", "agreement", "text_cosine", "image_cosine",
    "imagenet divergence", "elsewhere", "elsewhere zero_shot",
)  # fmt: skip


def collect(args: argparse.Namespace, dataset: str, runs: Mapping[Any, Wanted]) -> Table:
    """Settings that failed score nothing and test nothing."""
    records = read_all(runs.values(), args.out)

    def grid(way: str, figure: Callable[[Record], float | None]) -> Floats:
        rows = [
            [figure(records[runs[number, seed, way].name]) or 0.0 for seed in args.seeds]
            for number in range(args.settings + 1)
        ]
        return np.array(rows, np.float64)

    def seen(name: str) -> Floats:
        return grid("final", lambda record: record["signals"].get(name, math.nan))

    tests, base, new = (grid("final", itemgetter(name)) for name in ("H", "base", "new"))
    return Table(dataset, tests, base, new, {name: seen(name) for name in SEEN})


def gains(tables: Sequence[Table]) -> str:
    """What the settings of the portfolio, which are the same draws, have gained."""
    known = shipped()
    numbers = [[each.settings for each in known.known].index(s) for s in known.choose(without=())]
    rows = [(brief(known.known[k].settings), *(f"{t.gains[k].mean():+.1f}" for t in tables)) for k in numbers]
    return table(("settings", *(t.dataset for t in tables)), rows)


def brief(settings: Mapping[str, Any]) -> str:
    """Settings of `recipe` in few words."""
    s = settings
    kind = s["regularizer.kind"]
    weights = (
        "no regularizer"
        if kind == "none"
        else (f"{kind} {s['regularizer.text_weight']:.0f} and {s['regularizer.image_weight']:.0f}")
    )
    ends = "averaged" if s["averager.kind"] == "gaussian" else "last epoch"
    return (
        f"{weights}, {ends}, depths {s['prompts.text_depth']} and {s['prompts.vision_depth']}, rate "
        f"{s['optim.lr']:.2g}, crops from {s['augment.crop_scale_min']:.2f}"
    )


def portfolio(found: Evidence) -> dict[str, Any]:
    """What `tune/space/portfolio.py` reads: each setting's mean gain by data set."""
    known = [
        {
            "settings": settings,
            "gains": {t.dataset: round(float(t.gains[k].mean()), 2) for t in found.tables},
        }
        for k, settings in enumerate(drawn(found))
    ]
    return {
        "space": found.space,
        "method": "prometar",
        "backbone": "mini",
        "epochs": found.epochs,
        "seeds": len(found.seeds),
        "known": known,
    }


def show(found: Evidence, doc: Path | None) -> None:
    """What scores tell, what settings known from elsewhere gain, and what rules of choosing would have."""
    of_suite = {t.dataset for t in found.tables} <= set(DEVELOPMENT)
    others = () if of_suite else Evidence.read(EVIDENCE).tables
    head = (
        f"{found.machine}. {', '.join(t.dataset for t in found.tables)}: the released settings and "
        f"{found.settings} draws of `{found.space}`, {found.epochs} epochs, seeds "
        f"{', '.join(map(str, found.seeds))}; picks of {min(BUDGET, found.settings + 1)}."
    )
    settings, space = drawn(found), load_space(found.space)
    free = np.array([each.get("regularizer.kind") == "none" for each in ({}, *settings)])
    blocks = {"objectives": f"{head}\n\n{results(found.tables, free)}\n\n{parts(found.tables)}"}
    if found.settings == len(shipped().known):
        blocks["portfolio"] = gains(found.tables)
    if len(found.seeds) > 2 and len((*found.tables, *others)) > 2:
        blocks["choices"] = choices(found.tables, settings, space, others)
    if of_suite:
        for name, text in blocks.items():
            publish(text, doc, name)
    else:
        publish("\n\n".join(blocks.values()), doc, "photographs")
    if len(found.tables) > 2:
        for name in (DRIFT, "base validation accuracy"):
            print(f"{name}: {calibration(WAYS[name], found.tables)}")
        print(f"{DRIFT}: {promise(found.tables, settings, space)}")


def measured(args: argparse.Namespace) -> Evidence:
    """Run what has no record yet."""
    require_development(args.sets, claim=False)
    runs = {name: runs_of(args, name) for name in args.sets}
    run_all([run for by_key in runs.values() for run in by_key.values()], args.out, jobs=args.jobs)
    tables = tuple(collect(args, name, by_key) for name, by_key in runs.items())
    return Evidence(describe(threads=1), args.space, args.settings, tuple(args.seeds), args.epochs, tables)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--sets", nargs="+", default=DEVELOPMENT)
    parser.add_argument("--data-root", help="of sets that do not come with the project, such as dtd")
    parser.add_argument("--settings", type=int, default=24, help="random ones, beside the released")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--space", default="recipe")
    run_options(parser, out="out/objectives")
    parser.add_argument("--quick", action="store_true", help="two settings, one epoch")
    parser.add_argument("--evidence", type=Path, default=EVIDENCE, help=f"kept figures [{EVIDENCE.name}]")
    parser.add_argument("--keep", action="store_true", help="write the figures there")
    parser.add_argument("--show", action="store_true", help="run nothing: the figures that are there")
    parser.add_argument("--doc", type=Path, help="a document whose blocks get the tables")
    parser.add_argument("--portfolio", type=Path, help="write what each setting gained, for first trials")
    args = parser.parse_args()
    if args.quick:
        args.settings, args.epochs, args.seeds, args.out = 2, 1, [1, 2], args.out / "quick"
    if args.quick and (args.doc or args.portfolio or args.keep):
        parser.error("--quick is no evidence: it writes neither --doc nor --portfolio, and is not kept")
    found = Evidence.read(args.evidence) if args.show else measured(args)
    if args.keep:
        write_atomically(args.evidence, found.to_json().encode())
    show(found, args.doc)
    if args.portfolio:
        args.portfolio.write_text(json.dumps(portfolio(found), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
