"""Whether a search learns to please its score: what its best-scored settings gain on the test.

    python tune/search.py --dataset flags --trials 60 --portfolio 0 --top 0 --final-seeds "" --study long
    python benchmarks/top.py out/long [STUDY ...] [--top 5] [--seeds 1 2 3] [--out DIR] [--doc FILE]

The settings that a search has drawn and scored best are trained with fresh seeds, and tested. What their
leads promise was measured on random settings: where a search exploits the score, they gain less than that.
Only studies on development sets are read. The same command goes on from the records in --out.
"""

from pathlib import Path
from statistics import mean

from common import describe, parser_of, publish, require_development, table
from records import Record, Wanted, mean_and_interval, run_all, run_options

from prometar.config.settings import Config
from tune.results.reader import Records, read_records
from tune.results.schema import TrialRecord, by_score
from tune.stages.choice import CALIBRATIONS, EMBEDDED, believed


def runs_of(study: Records, trial: TrialRecord, seeds: list[int]) -> list[Wanted]:
    config = Config.model_validate(study.study.config).override(dict(trial.settings)).completed()
    name = f"{study.study.name}/trial-{trial.number:03d}"
    return [Wanted(f"{name}-seed{seed}", config.override({"train.seed": seed})) for seed in seeds]


def best_of(study: Records, top: int) -> list[TrialRecord]:
    """The best-scored of those that the sampler drew."""
    return [trial for trial in by_score(study.complete) if trial.origin == "sampled"][:top]


def row(study: Records, top: int, seeds: list[int], found: dict[str, Record]) -> tuple[object, ...]:
    """Mean lead, what it promises, and what is gained, of a study's best-scored settings."""
    released = study.released
    if released is None or released.score is None:
        raise SystemExit(f"error: the released settings have failed in {study.study.name}")
    reference = released.score

    def tested(trial: TrialRecord) -> float:
        return mean(found[run.name]["H"] or 0.0 for run in runs_of(study, trial, seeds))

    best, own = best_of(study, top), tested(released)
    leads = [(trial.score or 0.0) - reference for trial in best]
    promised = [believed([lead], CALIBRATIONS["drift"], EMBEDDED).mean for lead in leads]
    gains = [tested(trial) - own for trial in best]
    (dataset,) = study.asked.datasets
    count = len(study.complete)
    return (dataset, count, f"{mean(leads):+.1f}", f"{mean(promised):+.1f}",
            mean_and_interval(gains, signed=True), " ".join(f"{gain:+.1f}" for gain in gains))  # fmt: skip


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("studies", nargs="+", type=Path, metavar="STUDY")
    parser.add_argument("--top", type=int, default=5, help="settings of each study")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    run_options(parser, out="out/top")
    parser.add_argument("--quick", action="store_true", help="one setting, one seed")
    parser.add_argument("--doc", type=Path, help="a document whose block `top` gets the table")
    args = parser.parse_args()
    if args.quick:
        args.top, args.seeds = 1, args.seeds[:1]
    studies = [read_records(folder) for folder in args.studies]
    for study in studies:
        require_development(study.asked.datasets, claim=False)
    runs = [
        run
        for study in studies
        for trial in (study.released, *best_of(study, args.top))
        if trial is not None
        for run in runs_of(study, trial, args.seeds)
    ]
    found = run_all(runs, args.out, jobs=args.jobs)
    columns = ("data set", "trials", "lead", "promised", "gain of the best-scored", "one by one, best first")
    rows = [row(study, args.top, args.seeds, found) for study in studies]
    head = (
        f"{describe(threads=1)}. The {args.top} best-scored draws, seeds {', '.join(map(str, args.seeds))}."
    )
    publish(f"{head}\n\n{table(columns, rows)}", args.doc, "top")


if __name__ == "__main__":
    main()
