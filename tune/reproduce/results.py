"""Results of `prometar reproduce`: measured and published accuracies, and paired differences of methods."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from prometar.comparison.finished_runs import FinishedRun
from prometar.comparison.paired import EVERY_SEED, Difference, Results, Scores, compare
from prometar.config.recipes import is_recipe_file, recipe
from prometar.config.settings import Config
from prometar.metrics import ACCURACY, HARMONIC, Interval, harmonic_mean, t_interval
from tune.reproduce.grid import Grid, shots_column
from tune.reproduce.published import AVERAGE, Accuracies, changed_settings, published_accuracies


@dataclass(frozen=True)
class AccuracySummary:
    """Accuracy of a method in percent over n seeds.

    Args:
        mean: Mean over seeds. For H, the harmonic mean of the mean base and mean new accuracy.
        sd, interval: Standard deviation and 95% t-interval over seeds (None for one seed). For H, both are
            computed from the H of each seed.
        published: Published accuracy, or None if none is comparable.
    """

    n: int
    mean: float
    sd: float | None = None
    interval: Interval | None = None
    published: float | None = None


Row = tuple[str, str, Mapping[str, AccuracySummary]]
"""Row of the table: label (name of a dataset, or e.g. "average of 3"), method, and summaries by column."""


def collect(grid: Grid, runs: Iterable[FinishedRun]) -> Results:
    """Return accuracies by method, dataset, column and seed. Datasets without a finished run map to {}."""
    results: dict[str, dict[str, dict[str, dict[int, float]]]]
    results = {method: {dataset: {} for dataset in grid.all_datasets} for method in grid.methods}
    for run in runs:
        by_dataset = results[run.config.method]
        data = run.config.data
        accuracies = run.scores
        if grid.shots_are_columns:
            # `EVERY_SEED` marks an untrained method. Its accuracy is the same for every number of shots.
            shots = grid.shots if run.seed == EVERY_SEED else (data.shots,)
            accuracies = {shots_column(each): accuracies[ACCURACY] for each in shots}
        for column, value in accuracies.items():
            by_dataset[data.name].setdefault(column, {})[run.seed] = value
        for name, (accuracy, _) in run.result.tests.items():  # datasets used only for testing
            if name in by_dataset:
                by_dataset[name].setdefault(ACCURACY, {})[run.seed] = accuracy
    return results


def build_table(
    grid: Grid, results: Results, *, incomparable: Mapping[str, str]
) -> tuple[list[Row], list[str]]:
    """Return the rows of the table and its notes.

    Args:
        incomparable: For each dataset that is not a complete benchmark, the reason (`incomparable_reason`).
    """
    reasons = dict(incomparable)  # why there are no published accuracies for a dataset
    is_published_source = grid.source == grid.protocol.source and grid.source not in incomparable
    if grid.source and not is_published_source:  # then no result is comparable
        reasons = {**dict.fromkeys(grid.all_datasets, f"source {grid.source} differs"), **incomparable}
    published = _published_by_run(grid)
    rows: list[Row] = []
    for name in grid.all_datasets:
        for method in grid.methods:
            accuracies: Mapping[str, float] = {}
            if name not in reasons:
                training_dataset = grid.source or name
                accuracies = _published_in_row(published, method, name, [training_dataset])
            rows.append((name, method, _summarize(results[method][name], grid.columns, accuracies)))
    averaged = [name for name in grid.datasets if any(results[method][name] for method in grid.methods)]
    if len(averaged) > 1:
        is_complete = len(averaged) == len(grid.datasets)
        label = AVERAGE if is_complete else f"{AVERAGE} of {len(averaged)}"
        # Published averages are over all datasets of the protocol.
        is_comparable = is_complete and set(averaged) == set(grid.protocol.datasets) and not reasons
        for method in grid.methods:
            accuracies = {}
            if is_comparable:
                accuracies = _published_in_row(published, method, AVERAGE, grid.training_datasets)
            averages = _average([results[method][name] for name in averaged])
            rows.append((label, method, _summarize(averages, grid.columns, accuracies)))
    notes = [*_notes(grid, results), *_notes_on_published(rows, published, reasons)]
    return rows, notes


_PublishedByRun = Mapping[tuple[str, str], tuple[Accuracies, str]]
"""Published accuracies and their citation, by method and training dataset of the runs."""


def _published_by_run(grid: Grid) -> _PublishedByRun:
    shots = grid.shots[0]  # protocols with published accuracies have one number of shots
    published: dict[tuple[str, str], tuple[Accuracies, str]] = {}
    for method in grid.methods:
        for dataset in grid.training_datasets:
            config = grid.configs[method, dataset, shots]
            published[method, dataset] = published_accuracies(grid.protocol.name, config)
    return published


def _published_in_row(
    published: _PublishedByRun, method: str, label: str, training_datasets: Sequence[str]
) -> Mapping[str, float]:
    """Return the published accuracies of a row by column, or {} if there are none.

    If runs on any of the training datasets have other settings than the published ones, there are none.

    Args:
        label: Name of a dataset, or "average".
        training_datasets: Training datasets of the runs that the row summarizes.
    """
    accuracies = [published[method, dataset][0] for dataset in training_datasets]
    if not all(accuracies):
        return {}
    # Only averages have several training datasets. A published average is in the accuracies of each of them.
    return accuracies[0].get(label, {})


def _notes_on_published(
    rows: Sequence[Row], published: _PublishedByRun, reasons: Mapping[str, str]
) -> Iterator[str]:
    """Yield notes on the sources of published accuracies, and on datasets where none is comparable.

    Args:
        reasons: For each dataset where none is comparable, the reason.
    """
    cited_methods = {
        method for _, method, summaries in rows if any(each.published for each in summaries.values())
    }
    citations: dict[str, None] = {}  # a dictionary keeps the order
    for (method, _), (_, citation) in published.items():
        if method in cited_methods and citation:
            citations[citation] = None
    if citations:
        sources = ", ".join(citations)
        yield f"Sources of published accuracies: {sources}. Differences are ours minus published."
    if any(accuracies for accuracies, _ in published.values()):
        for name, reason in reasons.items():
            yield f"Not comparable with published accuracies: {name} ({reason})."


def _average(all_scores: Sequence[Scores]) -> Scores:
    """Average each column and seed over datasets. H is computed from the average base and new accuracy.

    Columns and seeds that a dataset lacks are left out, so that each average is over all datasets.
    """
    averages: dict[str, dict[int, float]] = {}
    for column in set.intersection(*(set(each) for each in all_scores)):
        seeds = set.intersection(*(set(each[column]) for each in all_scores))
        averages[column] = {seed: mean(each[column][seed] for each in all_scores) for seed in sorted(seeds)}
    if HARMONIC in averages:
        base = averages["base"]
        new = averages["new"]
        averages[HARMONIC] = {
            seed: harmonic_mean({"base": base[seed], "new": new[seed]}) for seed in averages[HARMONIC]
        }
    return averages


def _summarize(
    scores: Scores, columns: Sequence[str], published: Mapping[str, float]
) -> dict[str, AccuracySummary]:
    """Summarize each column that has values."""
    summaries: dict[str, AccuracySummary] = {}
    for column in columns:
        values = list(scores.get(column, {}).values())
        if not values:
            continue
        center = mean(values)
        if column == HARMONIC:
            base = mean(scores["base"].values())
            new = mean(scores["new"].values())
            center = harmonic_mean({"base": base, "new": new})
        summaries[column] = AccuracySummary(
            n=len(values),
            mean=center,
            sd=stdev(values) if len(values) > 1 else None,
            interval=t_interval(values),
            published=published.get(column),
        )
    return summaries


def compare_methods(grid: Grid, results: Results) -> tuple[list[Difference], list[str]]:
    """Compare methods with ProMetaR or, if the grid lacks it, the first method. Skip the source dataset."""
    compared: dict[str, dict[str, Scores]] = {}
    for method, by_dataset in results.items():
        compared[method] = {name: by_dataset[name] for name in grid.datasets if by_dataset[name]}
    default = Config().method
    reference = default if default in compared else next(iter(compared))
    return compare(compared, reference=reference, metrics=grid.columns)


def _notes(grid: Grid, results: Results) -> Iterator[str]:
    """Yield notes that explain the table."""
    yield "Mean ± standard deviation [95% t-interval] over n seeds."
    if HARMONIC in grid.columns:
        yield "H is the harmonic mean of the mean base and the mean new accuracy."
    if grid.source:
        yield f"The average does not include the source dataset {grid.source}."
    for method, by_dataset in results.items():
        if any(EVERY_SEED in seeds for scores in by_dataset.values() for seeds in scores.values()):
            yield f"{method} is not trained, so a single run represents all seeds."
    for method in grid.methods:
        configs = [config for (name, _, _), config in grid.configs.items() if name == method]
        changed: dict[str, object] = {}
        for config in configs:
            changed |= changed_settings(config, grid.protocol.name)
        if changed:
            listed = ", ".join(f"{key}={value}" for key, value in changed.items())
            yield f"Settings of {method} that differ from the published ones: {listed}."
        if any(_has_own_settings(config, grid) for config in configs):
            yield (
                f"The published settings of {method} differ between protocols or datasets. "
                f"`prometar methods {method}` shows them."
            )


def _has_own_settings(config: Config, grid: Grid) -> bool:
    """Return True if entries in `by` of a built-in recipe apply to runs of `config`."""
    if is_recipe_file(config.method):
        return False
    data = config.data
    return bool(recipe(config.method).entries_for(data.name, grid.protocol.name, data.shots))
