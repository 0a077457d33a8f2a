"""Tune methods with equal budgets, and ask whether they keep the order that published settings give them.

    python benchmarks/equal_tuning.py [--parts methods meta] [--out DIR]
    python benchmarks/equal_tuning.py --show [--doc docs/results.md]

Protocol, fixed before the first run:

- Each part is one `prometar reproduce --tune 16` with the backbone `mini`, 8 images per class and the test
  seeds 21 to 25. A study has 16 trials, a confirmation and a final test. Selected and published settings are
  trained as long as the method was published.
- Part `methods`: five methods until 2024 and five newer ones, on two datasets for development (`cells`,
  `charts`) and two closed ones (`suite:terrain`, `suite:fabrics`).
- Part `meta`: each of the five newer methods is composed with the meta phase, the gate and the feature mixup
  of ProMetaR, on `cells` and `suite:terrain`. Such a composition is compared with the method itself, whose
  studies are those of the part `methods`. A composition has the search space of its method and three more
  settings: `inner.lr`, `inner.outer_weight` and `task.augmentation`. Its "published" settings are those of
  both methods.
- Changed before any final test: `suite:fabrics` replaced `suite:sketches`, because the 48 classes of
  `suite:sketches` took two thirds of the time.
- All results are reported, whichever method is first.

The file `equal_tuning.jsonl` contains the results, one line per study. Rerun the same command to resume.
Studies in --out are continued or, if they have finished, not repeated. --show prints the recorded results.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from common import describe, machine, mean_and_interval, parser_of, publish, run_python, table

from tune.records.folder import read_records
from tune.stages.plan import plan_study
from tune.tuned.results import CellResult, Cost, TunedResults, study_cell
from tune.tuned.statements import answer, evidence

RECORDS = Path(__file__).with_suffix(".jsonl")
RECIPES = Path(__file__).with_suffix("")
TRIALS = 16
SHOTS = 8
SEEDS = (21, 22, 23, 24, 25)
OLDER = ("coop", "maple", "kgcoop", "promptsrc", "prometar")
NEWER = ("tcp", "mma", "mmrl", "dept-kgcoop", "coprompt")
META = {method: f"{method}-meta" for method in NEWER}
"""Name of a method's recipe with the meta phase."""


class Part(NamedTuple):
    """Part of the measurement: one command.

    Args:
        methods: Names of methods and of recipes in `equal_tuning/`.
        datasets: Names of datasets.
    """

    methods: Sequence[str]
    datasets: Sequence[str]


PARTS: Mapping[str, Part] = {
    "methods": Part((*OLDER, *NEWER), ("cells", "charts", "suite:terrain", "suite:fabrics")),
    "meta": Part((*NEWER, *META.values()), ("cells", "suite:terrain")),
}


def run(part: Part, out: Path) -> None:
    """Run the command of a part, or resume it."""
    methods = [recipe_file(name) if is_meta(name) else name for name in part.methods]
    run_python(
        "-m",
        "prometar",
        "reproduce",
        "--tune",
        TRIALS,
        "--backbone",
        "mini",
        "--shots",
        SHOTS,
        "--datasets",
        *part.datasets,
        "--methods",
        *methods,
        "--seeds",
        *SEEDS,
        "--out",
        out,
        capture=False,
    )


def is_meta(method: str) -> bool:
    """Return True for a recipe with the meta phase."""
    return method in META.values()


def recipe_file(method: str) -> Path:
    """Return the recipe file of a method with the meta phase."""
    return RECIPES / f"{method}.yaml"


def record(part: Part, out: Path) -> None:
    """Append the finished studies of a part that are not recorded yet."""
    recorded = {(row["method"], row["dataset"]) for row in read()}
    for dataset in part.datasets:
        for method in part.methods:
            if (method, dataset) in recorded:
                continue
            # `prometar reproduce` names a study by its dataset and its method or recipe file.
            name = f"{method}.yaml" if is_meta(method) else method
            records = read_records(out / "studies" / f"{dataset.replace(':', '.')}-{name}")
            config = records.study.config
            cell = study_cell((method, dataset), config, plan_study(config), records)
            if cell.missing and not cell.tuned:
                raise SystemExit(f"{method} on {dataset}: {cell.missing}")
            row = {
                **asdict(cell),
                "num_settings": len(config.search.space.ranges),
                "machine": machine(),
            }
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def read() -> list[dict[str, Any]]:
    """Return the recorded studies."""
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text("utf-8").splitlines()]


def cells_of(rows: Sequence[dict[str, Any]], part: Part) -> dict[tuple[str, str], CellResult]:
    """Return the recorded results of a part, by method and dataset."""
    cells: dict[tuple[str, str], CellResult] = {}
    for row in rows:
        method = row["method"]
        dataset = row["dataset"]
        if method not in part.methods or dataset not in part.datasets:
            continue
        cells[method, dataset] = CellResult(
            method,
            dataset,
            published=scores_by_seed(row["published"]),
            tuned=scores_by_seed(row["tuned"]),
            cost=Cost(**row["cost"]),
            keeps_published=row["keeps_published"],
            changed=row["changed"],
            missing=row["missing"],
        )
    return cells


def scores_by_seed(recorded: Mapping[str, float]) -> dict[int, float]:
    """Return scores by seed. The keys of a JSON object are strings."""
    return {int(seed): score for seed, score in recorded.items()}


def comparison_of_methods(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the part `methods`, and the answer with its evidence."""
    part = PARTS["methods"]
    results = TunedResults(cells_of(rows, part), untrained=())
    ranking = results.ranking
    assert ranking is not None
    lines = []
    for method in ranking.tuned.methods:
        cells = [results.cells[method, dataset] for dataset in part.datasets]
        scores = [f"{cell.published_mean:.1f} → {cell.tuned_mean:.1f}" for cell in cells]
        gains = list(results.gains_of(method).values())
        # The number of epochs is searched on `suite:` datasets only, so the number of settings differs.
        num_settings = max(row["num_settings"] for row in rows if row["method"] == method)
        lines.append(
            (
                method,
                num_settings,
                *scores,
                f"{ranking.published.means[method]:.1f} → {ranking.tuned.means[method]:.1f}",
                mean_and_interval(gains),
                f"{ranking.published.ranks[method]:.2f} → {ranking.tuned.ranks[method]:.2f}",
                f"{results.cost_of(method).steps:,}",
            )
        )
    head = ("method", "settings", *part.datasets, "mean", "gain [95% CI over datasets]", "rank", "steps")
    sentences = [answer(ranking), *evidence(ranking)]
    return f"{table(head, lines)}\n\n{' '.join(sentences)}"


def comparison_of_compositions(rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the part `meta`: differences with minus without the meta phase."""
    part = PARTS["meta"]
    cells = cells_of(rows, part)
    lines = []
    differences_of_all = []
    for method, name in META.items():
        shown: list[str] = []
        tuned_differences: list[float] = []
        published_differences: list[float] = []
        for dataset in part.datasets:
            without = cells[method, dataset]
            with_meta = cells[name, dataset]
            paired = paired_differences(with_meta.tuned, without.tuned)
            shown.append(
                f"{without.tuned_mean:.1f} → {with_meta.tuned_mean:.1f} ({mean_and_interval(paired)})"
            )
            tuned_differences.append(mean(paired))
            assert with_meta.published_mean is not None
            assert without.published_mean is not None
            published_differences.append(with_meta.published_mean - without.published_mean)
        difference = mean(tuned_differences)
        lines.append((method, *shown, f"{difference:+.2f}", f"{mean(published_differences):+.2f}"))
        differences_of_all.append(difference)
    head = ("method", *part.datasets, "mean difference after tuning", "at published settings")
    summary = (
        f"Mean over the five methods, after tuning: {mean_and_interval(differences_of_all)} points of H "
        "(95% t-interval over methods)."
    )
    return f"{table(head, lines)}\n\n{summary}"


def paired_differences(scores: Mapping[int, float], others: Mapping[int, float]) -> list[float]:
    """Return `scores` minus `others` for each seed that both have."""
    return [score - others[seed] for seed, score in scores.items() if seed in others]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    parser.add_argument("--out", type=Path, default=Path("out/equal_tuning"), help="folder of the studies")
    parser.add_argument("--show", action="store_true", help="print the tables only")
    parser.add_argument("--doc", type=Path, help="document whose blocks are replaced")
    args = parser.parse_args()
    if not args.show:
        for name in args.parts:
            run(PARTS[name], args.out.resolve())
            record(PARTS[name], args.out.resolve())
    rows = read()
    if not rows:
        print(f"{RECORDS} contains no study yet.")
        return
    where = f"{describe(1, where=rows[0]['machine'])}. Mean H (%) on test images, {len(SEEDS)} seeds."
    publish(f"{where}\n\n{comparison_of_methods(rows)}", args.doc, "equal-tuning")
    if any(is_meta(row["method"]) for row in rows):
        publish(comparison_of_compositions(rows), args.doc, "meta-regularization")


if __name__ == "__main__":
    main()
