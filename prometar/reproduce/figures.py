"""What a grid's records say: a table with published figures beside, and the methods in pairs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any

from prometar.comparison.paired import EVERY_SEED, Comparison, compare
from prometar.config.settings import Config
from prometar.metrics import ACCURACY, HARMONIC, harmonic_mean, t_interval
from prometar.reproduce.grid import Asked, Record
from prometar.reproduce.protocols import shots_column
from prometar.reproduce.published import AVERAGE, Series, beside, changes, full_size, harmonic, settings_of

Scores = dict[str, dict[int, float]]
"""Percent by column and seed, of one method on one data set."""


@dataclass(frozen=True)
class Figure:
    """An accuracy over n seeds, and the published one beside it.

    Args:
        mean: Percent. For H, the harmonic mean of the mean base and the mean new accuracy.
        sd: Standard deviation over seeds; None for one seed. For H, of the H of each seed.
        low, high: 95 % t-interval, as sd.
        published: Percent, where one may stand beside.
    """

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    published: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours - published."""
        return None if self.published is None else self.mean - self.published


@dataclass(frozen=True)
class Row:
    """One method on one data set, or on average; a column without results has no figure."""

    dataset: str
    method: str
    figures: Mapping[str, Figure]


@dataclass(frozen=True)
class Table:
    """Rows, and what must be said with them."""

    protocol: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def build_table(
    asked: Asked,
    records: Sequence[Record],
    *,
    notes: Sequence[str] = (),
    uncited: Mapping[str, str] = MappingProxyType({}),
) -> Table:
    """The table of what was asked, from the records that there are.

    Args:
        notes: What the data sets are too small for, and what could not be run, and why.
        uncited: Data sets whose figures do not compare with published ones, and why.
    """
    columns = asked.protocol.columns(asked.shots)
    datasets = (*asked.trained_on, *asked.datasets) if asked.source else asked.datasets
    scores = {(d, m): _scores_of(asked, records, d, m) for d in datasets for m in asked.configs}
    averaged = [d for d in asked.datasets if any(scores[d, m] for m in asked.configs)]
    cited = _Cited(asked, records, uncited)
    rows = [
        Row(dataset, method, _figures(found, columns, cited.of(method, dataset, [dataset])))
        for (dataset, method), found in scores.items()
    ]
    if len(averaged) > 1:
        all_there = len(averaged) == len(asked.datasets)
        label = AVERAGE if all_there else f"{AVERAGE} of {len(averaged)}"
        comparable = set(averaged) == set(asked.protocol.datasets)  # those of the published average
        for method in asked.configs:
            found = _average([scores[dataset, method] for dataset in averaged])
            published = cited.of(method, AVERAGE, averaged) if comparable else {}
            rows.append(Row(label, method, _figures(found, columns, published)))
    explained = _explain(asked, records, rows, cited)
    return Table(asked.protocol.name, _title(asked), columns, tuple(rows), (*explained, *notes))


def _scores_of(asked: Asked, records: Sequence[Record], dataset: str, method: str) -> Scores:
    """What the runs of a method have on a data set, by the table's columns; H not yet."""
    found: Scores = {}
    for record in records:
        config = record.entry.config
        if config.method != method:
            continue
        if config.data.name == dataset:
            for column, value in _own(asked, record).items():
                found.setdefault(column, {})[config.train.seed] = value
        elif dataset in record.tests:
            found.setdefault(ACCURACY, {})[config.train.seed] = record.tests[dataset]
    return found


def _own(asked: Asked, record: Record) -> dict[str, float]:
    """A run's accuracies on the data set that it was trained on, by the table's columns."""
    if asked.protocol.objective == "final" or not record.accuracies:
        return dict(record.accuracies)
    accuracy = record.accuracies["all"]
    if not asked.protocol.by_shots:
        return {ACCURACY: accuracy}
    shots = (record.entry.config.data.shots,) if record.entry.trains else asked.shots
    return {shots_column(k): accuracy for k in shots}


def _with_harmonic(scores: Scores) -> Scores:
    """With H of each seed, where there are base and new."""
    if not {"base", "new"} <= scores.keys():
        return scores
    base, new = scores["base"], scores["new"]
    by_seed = {s: harmonic_mean({"base": base[s], "new": new[s]}) for s in base if s in new}
    return {**scores, HARMONIC: by_seed}


def _average(scores: Sequence[Scores]) -> Scores:
    """By seed, over data sets; of the columns and seeds that all of them have."""
    columns = set.intersection(*(set(s) for s in scores))
    averages: Scores = {}
    for column in columns:
        seeds = set.intersection(*(set(s[column]) for s in scores))
        averages[column] = {seed: mean(s[column][seed] for s in scores) for seed in sorted(seeds)}
    return averages


def _figures(scores: Scores, columns: Sequence[str], published: Mapping[str, float]) -> dict[str, Figure]:
    """A figure for each column that has values."""
    scores = _with_harmonic(scores)
    figures: dict[str, Figure] = {}
    for column in columns:
        values = list(scores.get(column, {}).values())
        if not values:
            continue
        middle = mean(values)
        if column == HARMONIC:
            middle = harmonic_mean({key: mean(scores[key].values()) for key in ("base", "new")})
        interval = t_interval(values)
        figures[column] = Figure(
            n=len(values),
            mean=middle,
            sd=stdev(values) if interval else None,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            published=published.get(column),
        )
    return figures


def pair_methods(asked: Asked, records: Sequence[Record]) -> Comparison:
    """Compare the methods on the datasets of the table's average, without the source."""
    idle = {record.entry.config.method for record in records if not record.entry.trains}
    results: dict[str, dict[str, Scores]] = {}
    for method in asked.configs:
        found = {d: _with_harmonic(_scores_of(asked, records, d, method)) for d in asked.datasets}
        results[method] = {
            dataset: _for_every_seed(scores) if method in idle else scores
            for dataset, scores in found.items()
            if scores
        }
    default = Config().method if Config().method in results else next(iter(results))
    reference = asked.compared_to or default
    return compare(results, reference=reference, columns=asked.protocol.columns(asked.shots))


def _for_every_seed(scores: Scores) -> Scores:
    """Of what learns nothing: its one run is that of every seed."""
    return {column: {EVERY_SEED: value} for column, found in scores.items() for value in found.values()}


class _Cited:
    """The published figures that may stand beside the asked ones."""

    def __init__(self, asked: Asked, records: Sequence[Record], uncited: Mapping[str, str]) -> None:
        self.uncited = uncited
        self._sizes = {name: size for record in records for name, size in record.num_classes.items()}
        shots = {"data.shots": asked.shots[0]}
        found = {m: beside(asked.protocol.name, c.override(shots)) for m, c in asked.configs.items()}
        self.series: dict[str, Series] = {method: one for method, one in found.items() if one}

    def of(self, method: str, row: str, datasets: Sequence[str]) -> dict[str, float]:
        """A row's figures by column; only where its data sets are the benchmarks', with all their classes."""
        whole = all(full_size(d, self._sizes.get(d, 0)) and d not in self.uncited for d in datasets)
        if method not in self.series or not whole:
            return {}
        figures = self.series[method].figures.get(row, {})
        h = harmonic(figures)
        return {**figures, **({HARMONIC: h} if h is not None else {})}


def _title(asked: Asked) -> str:
    config = next(iter(asked.configs.values()))
    backbone = " ".join(filter(None, (config.backbone.name, config.backbone.pretrained)))
    shots = "" if asked.protocol.by_shots else f"{shots_column(asked.shots[0])}, "
    source = f"trained on {asked.source}, " if asked.source else ""
    seeds = ", ".join(map(str, asked.seeds))
    return f"{asked.protocol.name}: {source}{shots}{backbone}, seeds {seeds}, test accuracy in percent"


def _explain(asked: Asked, records: Sequence[Record], rows: Sequence[Row], cited: _Cited) -> list[str]:
    """How the table is to be read, in sentences."""
    lines = ["mean ± standard deviation [95 % t-interval] over n seeds; no spread where n is 1"]
    if HARMONIC in asked.protocol.columns(asked.shots):
        lines.append(
            "H is the harmonic mean of the mean base and the mean new accuracy (H of the averages); "
            "its deviation and interval are those of the H of each seed"
        )
    if asked.source:
        lines.append(f"an average is over the data sets other than the source {asked.source}")
    idle = sorted({r.entry.config.method for r in records if not r.entry.trains})
    if idle:
        lines.append(f"nothing is trained by {', '.join(idle)}: one run, the same for every seed")
    lines += _settings(asked)
    shown_series = {row.method for row in rows if any(f.published is not None for f in row.figures.values())}
    if shown_series:
        papers = (s.cited for m, s in cited.series.items() if m in shown_series)
        lines.append(
            f"published figures are cited, not run here: {', '.join(papers)}; difference: ours - published"
        )
    if cited.series:
        left = (f"{name} ({why})" for name, why in cited.uncited.items())
        lines += [f"no published figures stand beside those on {each}" for each in left]
    if next(iter(asked.configs.values())).backbone.name == "mini":
        lines.append("figures of the embedded backbone compare with each other only, not with published ones")
    return lines


def _settings(asked: Asked) -> list[str]:
    """Where runs are not at their methods' recipes."""
    own = {method: settings_of(asked.protocol.name, method) for method in asked.configs}
    kept = {m: {k: v for k, v in own[m].items() if asked.configs[m].flat()[k] == v} for m in own}
    lines = [f"{method} under this protocol: {_assigned(kept[method])}" for method in kept if kept[method]]
    changed = {
        key: value
        for method, config in asked.configs.items()
        for key, value in changes(config, own[method], recipe=asked.recipes.get(method)).items()
    }
    return lines + ([f"not the methods' own settings: {_assigned(changed)}"] if changed else [])


def _assigned(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())
