"""Results of a grid as a table with published figures, and as a paired comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

from prometar.comparison.paired import EVERY_SEED, Comparison, compare
from prometar.config.settings import Config
from prometar.metrics import ACCURACY, HARMONIC, harmonic_mean, t_interval
from prometar.reproduce.grid import Grid, GridResult
from prometar.reproduce.protocols import shots_column
from prometar.reproduce.published import AVERAGE, beside, changes, harmonic, settings_of

Scores = dict[str, dict[int, float]]
"""Percent by column and seed, of one method on one dataset."""


@dataclass(frozen=True)
class Figure:
    """Accuracy over n seeds.

    Args:
        mean: Percent. H is the harmonic mean of the mean base and the mean new accuracy.
        sd, low, high: Standard deviation and 95% t-interval over seeds; None for one seed. Those of H are of
            the H of each seed.
        published: Comparable published accuracy, if there is one.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    published: float | None = None

    @property
    def difference(self) -> float | None:
        """Our accuracy minus the published one."""
        return None if self.published is None else self.mean - self.published


@dataclass(frozen=True)
class Row:
    """Figures of one method on one dataset, or on average, by column."""

    dataset: str
    method: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Table:
    """Table of a grid, with the notes that belong to it."""

    protocol: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def build_table(grid: Grid, results: Sequence[GridResult], *, uncited: Mapping[str, str]) -> Table:
    """Build the table from the results that there are.

    Args:
        uncited: Datasets whose figures do not compare with published ones, and why.
    """
    columns = grid.protocol.columns(grid.shots)
    shots = {"data.shots": grid.shots[0]}
    comparable = {m: beside(grid.protocol.name, config.override(shots)) for m, config in grid.configs.items()}
    series = {method: found for method, found in comparable.items() if found}

    def published(method: str, row: str, datasets: Sequence[str]) -> dict[str, float]:
        if method not in series or not uncited.keys().isdisjoint(datasets):
            return {}
        figures = series[method].figures.get(row, {})
        h = harmonic(figures)
        return {**figures, **({HARMONIC: h} if h is not None else {})}

    scores = {(d, m): _scores_of(grid, results, d, m) for d in grid.all_datasets for m in grid.configs}
    rows = [
        Row(dataset, method, _figures(found, columns, published(method, dataset, [dataset])))
        for (dataset, method), found in scores.items()
    ]
    averaged = [d for d in grid.datasets if any(scores[d, m] for m in grid.configs)]
    if len(averaged) > 1:
        label = AVERAGE if len(averaged) == len(grid.datasets) else f"{AVERAGE} of {len(averaged)}"
        is_whole = set(averaged) == set(grid.protocol.datasets)
        for method in grid.configs:
            average = _average([scores[dataset, method] for dataset in averaged])
            cited = published(method, AVERAGE, averaged) if is_whole else {}
            rows.append(Row(label, method, _figures(average, columns, cited)))
    shown = {row.method for row in rows if any(f.published is not None for f in row.figures.values())}
    notes = [*_notes(grid, results), *_settings(grid)]
    if shown:
        papers = ", ".join(found.cited for method, found in series.items() if method in shown)
        notes.append(f"Published figures are cited, not run here: {papers}. Difference: ours - published.")
    if series:
        notes += [f"Not comparable with published figures: {name} ({why})." for name, why in uncited.items()]
    return Table(grid.protocol.name, _title(grid), columns, tuple(rows), tuple(notes))


def _scores_of(grid: Grid, results: Sequence[GridResult], dataset: str, method: str) -> Scores:
    """Return the figures of a method on a dataset by column and seed."""
    scores: Scores = {}
    for found in results:
        config = found.run.config
        if config.method == method and config.data.name == dataset:
            for column, value in _accuracies(grid, found).items():
                scores.setdefault(column, {})[config.train.seed] = value
        elif config.method == method and dataset in found.tests:
            scores.setdefault(ACCURACY, {})[config.train.seed] = found.tests[dataset].accuracy
    return scores


def _accuracies(grid: Grid, found: GridResult) -> dict[str, float]:
    """Return a run's accuracies on the dataset that it was trained on, by column."""
    accuracies = found.accuracies
    if "all" not in accuracies:
        h = {HARMONIC: harmonic_mean(accuracies)} if {"base", "new"} == accuracies.keys() else {}
        return {**accuracies, **h}
    if not grid.protocol.by_shots:
        return {ACCURACY: accuracies["all"]}
    shots = (found.run.config.data.shots,) if found.run.trains else grid.shots
    return {shots_column(k): accuracies["all"] for k in shots}


def _average(scores: Sequence[Scores]) -> Scores:
    """Average over datasets, seed by seed. H is that of the averages."""
    averages: Scores = {}
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
        if not (values := list(scores.get(column, {}).values())):
            continue
        middle = mean(values)
        if column == HARMONIC:
            middle = harmonic_mean({key: mean(scores[key].values()) for key in ("base", "new")})
        figure = Figure(len(values), middle, published=published.get(column))
        if interval := t_interval(values):
            figure = replace(figure, sd=stdev(values), low=interval.low, high=interval.high)
        figures[column] = figure
    return figures


def pair_methods(grid: Grid, results: Sequence[GridResult]) -> Comparison:
    """Compare the methods on the datasets of the table's average, without the source."""
    untrained = {found.run.config.method for found in results if not found.run.trains}
    figures: dict[str, dict[str, Scores]] = {}
    for method in grid.configs:
        by_dataset = {dataset: _scores_of(grid, results, dataset, method) for dataset in grid.datasets}
        figures[method] = {
            dataset: _for_every_seed(scores) if method in untrained else scores
            for dataset, scores in by_dataset.items()
            if scores
        }
    default = Config().method if Config().method in figures else next(iter(figures))
    columns = grid.protocol.columns(grid.shots)
    return compare(figures, reference=grid.compared_to or default, columns=columns)


def _for_every_seed(scores: Scores) -> Scores:
    return {column: {EVERY_SEED: value} for column, found in scores.items() for value in found.values()}


def _title(grid: Grid) -> str:
    backbone = " ".join(filter(None, (grid.config.backbone.name, grid.config.backbone.pretrained)))
    shots = "" if grid.protocol.by_shots else f"{shots_column(grid.shots[0])}, "
    source = f"trained on {grid.source}, " if grid.source else ""
    seeds = ", ".join(map(str, grid.seeds))
    return f"{grid.protocol.name}: {source}{shots}{backbone}, seeds {seeds}, test accuracy in percent"


def _notes(grid: Grid, results: Sequence[GridResult]) -> list[str]:
    """Explain the table in sentences."""
    lines = ["Mean ± standard deviation [95% t-interval] over n seeds."]
    if HARMONIC in grid.protocol.columns(grid.shots):
        lines.append("H is the harmonic mean of the mean base and the mean new accuracy.")
    if grid.source:
        lines.append(f"The average is over the datasets other than the source {grid.source}.")
    if untrained := sorted({found.run.config.method for found in results if not found.run.trains}):
        lines.append(f"Nothing is trained by {', '.join(untrained)}: one run for all seeds.")
    if grid.config.backbone.name == "mini":
        lines.append("Figures of mini compare with each other only, not with published ones.")
    return lines


def _settings(grid: Grid) -> list[str]:
    """Name the settings that differ from the methods' recipes."""
    lines, changed = [], dict[str, Any]()
    for method, config in grid.configs.items():
        flat, own = config.flat(), settings_of(grid.protocol.name, method)
        if kept := {key: value for key, value in own.items() if flat[key] == value}:
            lines.append(f"Under this protocol, {method} has {_assigned(kept)}.")
        changed |= changes(config, own)
    return lines + ([f"Changed settings: {_assigned(changed)}."] if changed else [])


def _assigned(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
