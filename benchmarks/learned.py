"""What settings are worth that other data sets' scores promise most of, taken without a search.

    python benchmarks/learned.py [--proposals 3] [--seeds 1 2 3] [--out DIR] [--jobs 2] [--tables] [--quick]
        [--doc docs/objectives.md]

For each development set: a linear model of the settings that benchmarks/objectives.json holds, fitted on the
drift scores of the other sets, one seed, as a search sees them (`tune/stages/learned.py`); what it proposes
is trained and tested. No test image is in what it is fitted on. A run leaves a record in --out and is not
made again.
"""

from pathlib import Path
from statistics import mean

from choosing import searched
from common import parser_of, publish, table
from objectives import EVIDENCE, drawn
from records import Wanted, mean_and_interval, nothing_else, on_mini, read_all, run_all, run_options
from scoring import Evidence, Table

from tune.space.spaces import load_space
from tune.stages.learned import propose


def proposals(found: Evidence, dataset: Table, number: int) -> list[dict[str, object]]:
    """What the other sets' scores promise most of."""
    settings = drawn(found)
    others = [searched(t, settings, 0) for t in found.tables if t is not dataset]
    return propose(load_space(found.space), others, number, seed=0)


def wanted(found: Evidence, dataset: str, settings: dict[str, object], place: int, seed: int) -> Wanted:
    config = on_mini(settings, dataset, epochs=found.epochs, seed=seed)
    return Wanted(f"{dataset}/proposal-{place}-seed{seed}", config, signals=nothing_else)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--proposals", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    run_options(parser, out="out/learned")
    parser.add_argument("--quick", action="store_true", help="the first proposal of one set, one seed")
    parser.add_argument("--tables", action="store_true", help="run nothing: the table of what is there")
    parser.add_argument("--doc", type=Path, help="a document whose block `learned` gets the table")
    args = parser.parse_args()
    if args.quick and args.doc:
        parser.error("--quick is no evidence: it writes no --doc")
    found = Evidence.read(EVIDENCE)
    tables = found.tables
    if args.quick:
        args.proposals, args.seeds, tables = 1, args.seeds[:1], tables[-1:]
    runs = {
        (t.dataset, place, seed): wanted(found, t.dataset, settings, place, seed)
        for t in tables
        for place, settings in enumerate(proposals(found, t, args.proposals))
        for seed in args.seeds
    }
    asked = list(runs.values())
    records = read_all(asked, args.out) if args.tables else run_all(asked, args.out, jobs=args.jobs)
    if missing := [run.name for run in asked if run.name not in records]:
        parser.error(f"{args.out} lacks {len(missing)} runs, {missing[0]} among them: leave --tables out")
    gains = {
        (t.dataset, place): [
            records[runs[t.dataset, place, seed].name]["H"] - t.tests[0, found.seeds.index(seed)]
            for seed in args.seeds
        ]
        for t in tables
        for place in range(args.proposals)
    }
    rows = []
    for place in range(args.proposals):
        of_sets = [mean(gains[t.dataset, place]) for t in tables]
        cells = (f"{gain:+.1f}" for gain in of_sets)
        rows.append((place + 1, *cells, mean_and_interval(of_sets, signed=True)))
    head = ("proposal", *(t.dataset for t in tables), "mean")
    seeds = ", ".join(map(str, args.seeds))
    publish(f"{found.machine}. Seeds {seeds}.\n\n{table(head, rows)}", args.doc, "learned")


if __name__ == "__main__":
    main()
