"""Results of a grid as a table with published figures, and as a paired comparison."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from prometar.comparison.paired import EVERY_SEED, Difference, Results, Scores, compare
from prometar.comparison.runs import FinishedRun
from prometar.config.settings import Config
from prometar.metrics import ACCURACY, HARMONIC, Interval, harmonic_mean, t_interval
from tune.reproduce.grid import PROTOCOLS, Grid, shots_column
from tune.reproduce.published import AVERAGE, beside, changes


@dataclass(frozen=True)
class Figure:
    """Accuracy over n seeds.

    Args:
        mean: Percent. H is the harmonic mean of the mean base and the mean new accuracy.
        sd, interval: Standard deviation and 95% t-interval over seeds; None for one seed. Those of H are of
            the H of each seed.
        published: Comparable published accuracy, if there is one.
    """

    n: int
    mean: float
    sd: float | None = None
    interval: Interval | None = None
    published: float | None = None


Row = tuple[str, str, Mapping[str, Figure]]
"""Dataset (or average), method, and figures by column."""


def collect(grid: Grid, runs: Iterable[FinishedRun]) -> Results:
    """Return percent by method, dataset, column and seed, with all methods and datasets of the grid."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]]
    found = {method: {dataset: {} for dataset in grid.all_datasets} for method in grid.configs}
    for run in runs:
        by_dataset, data, figures = found[run.config.method], run.config.data, run.figures
        if grid.shots_are_columns:
            shots = grid.shots if run.seed == EVERY_SEED else (data.shots,)
            figures = {shots_column(each): figures[ACCURACY] for each in shots}
        for column, value in figures.items():
            by_dataset[data.name].setdefault(column, {})[run.seed] = value
        for name, (accuracy, _) in run.result.tests.items():
            if name in by_dataset:
                by_dataset[name].setdefault(ACCURACY, {})[run.seed] = accuracy
    return found


def build_table(grid: Grid, results: Results, *, uncited: Mapping[str, str]) -> tuple[list[Row], list[str]]:
    """Return the rows of the table from the results that there are, and notes.

    Args:
        uncited: Datasets whose figures do not compare with published ones, and why.
    """
    shots = {"data.shots": grid.shots[0]}
    series = {method: beside(grid.name, config.override(shots)) for method, config in grid.configs.items()}

    def row(label: str, method: str, scores: Scores, *, comparable: bool) -> Row:
        published = series[method][0].get(label, {}) if comparable else {}
        return label, method, _figures(scores, grid.columns, published)

    rows = [
        row(name, method, results[method][name], comparable=name not in uncited)
        for name in grid.all_datasets
        for method in grid.configs
    ]
    averaged = [name for name in grid.datasets if any(results[method][name] for method in grid.configs)]
    if len(averaged) > 1:
        label = AVERAGE if len(averaged) == len(grid.datasets) else f"{AVERAGE} of {len(averaged)}"
        same = set(averaged) == set(PROTOCOLS[grid.name].datasets) and not uncited
        averages = {method: _average([results[method][name] for name in averaged]) for method in grid.configs}
        rows += [row(label, method, scores, comparable=same) for method, scores in averages.items()]
    shown = {method for _, method, found in rows if any(figure.published for figure in found.values())}
    notes = list(_notes(grid, results))
    if shown:
        papers = ", ".join(cited for method, (_, cited) in series.items() if method in shown)
        notes.append(f"Published figures are cited, not run here: {papers}. Difference: ours - published.")
    if any(figures for figures, _ in series.values()):
        notes += [f"Not comparable with published figures: {name} ({why})." for name, why in uncited.items()]
    return rows, notes


def _average(scores: Sequence[Scores]) -> Scores:
    """Average over datasets, seed by seed. H is that of the averages."""
    averages: dict[str, dict[int, float]] = {}
    for column in set.intersection(*(set(each) for each in scores)):
        seeds = set.intersection(*(set(each[column]) for each in scores))
        averages[column] = {seed: mean(each[column][seed] for each in scores) for seed in sorted(seeds)}
    if HARMONIC in averages:
        base, new = averages["base"], averages["new"]
        averages[HARMONIC] = {s: harmonic_mean({"base": base[s], "new": new[s]}) for s in averages[HARMONIC]}
    return averages


def _figures(scores: Scores, columns: Sequence[str], published: Mapping[str, float]) -> dict[str, Figure]:
    """Return a figure for each column that has values."""
    figures = {}
    for column in columns:
        if values := list(scores.get(column, {}).values()):
            middle = mean(values)
            if column == HARMONIC:
                middle = harmonic_mean({key: mean(scores[key].values()) for key in ("base", "new")})
            interval = t_interval(values)
            sd = stdev(values) if interval else None
            figures[column] = Figure(len(values), middle, sd, interval, published.get(column))
    return figures


def pair_methods(grid: Grid, results: Results) -> tuple[list[Difference], list[str]]:
    """Compare the methods on the datasets of the table's average, without the source."""
    compared = {
        method: {name: found[name] for name in grid.datasets if found[name]}
        for method, found in results.items()
    }
    default = Config().method
    reference = default if default in compared else next(iter(compared))
    return compare(compared, reference=reference, columns=grid.columns)


def _notes(grid: Grid, results: Results) -> Iterator[str]:
    """Explain the table in sentences."""
    yield "Mean ± standard deviation [95% t-interval] over n seeds."
    if HARMONIC in grid.columns:
        yield "H is the harmonic mean of the mean base and the mean new accuracy."
    if grid.source:
        yield f"The average is over the datasets other than the source {grid.source}."
    for method, by_dataset in results.items():
        if any(EVERY_SEED in seeds for scores in by_dataset.values() for seeds in scores.values()):
            yield f"Nothing is trained by {method}: one run for all seeds."
    for method, config in grid.configs.items():
        if changed := changes(config):
            listed = ", ".join(f"{key}={value}" for key, value in changed.items())
            yield f"Settings of {method} that are not its default: {listed}."
