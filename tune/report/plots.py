"""Plots of a report. Most plots of the search are Optuna's."""

import html
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
import optuna.visualization as visualization
import plotly.graph_objects as go
from markupsafe import Markup
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState, create_trial
from plotly.io import to_html
from plotly.subplots import make_subplots

from prometar.cli.console import format_duration
from prometar.training.classification import ClassificationMetrics
from tune.config import DIRECTIONS, Goal
from tune.records.folder import Records
from tune.records.schema import (
    DatasetTest,
    FinalTest,
    RunScore,
    RunScores,
    SettingsName,
    TrialRecord,
    metrics_by_part,
    paired_differences,
)
from tune.records.timeline import TimelineEntry
from tune.report.formatting import format_difference
from tune.report.statements import LABELS
from tune.space.ranges import Choice, Range

Floats = NDArray[np.float64]

ORANGE = "#c05621"
DARK = "#2d3748"
BLUE = "#2b6cb0"
GRAY = "#7b8794"
_SLICES_PER_ROW = 3  # more do not fit into the width of the page
MAX_SLICES = 6
"""Maximum number of settings that are plotted against the score, the most important ones first."""
MIN_IMPORTANCE_TRIALS = 8
"""Minimum number of completed trials for importances. With fewer trials, importances are noise."""
_EVALUATOR = PedAnovaImportanceEvaluator(target_quantile=0.25)  # compares the best quarter with all trials
_MAX_IDLE = 60.0  # longest idle time in a timeline, in seconds
_MAX_MINUTES = 180  # a longer timeline has an axis in hours
_STAGE_COLORS = {"Search": BLUE, "Confirmation": "#2f855a", "Final test": ORANGE}
_OUTCOME_COLORS = {"failed": "#c53030", "interrupted": GRAY}
_AXIS = {"gridcolor": "#e6eaef", "linecolor": "#a3adba", "zeroline": False, "automargin": True}

_DOTTED_LINE = {"color": "#cbd5e0", "dash": "dot", "width": 1}

_HEAT_MAP_HEIGHT = 480  # pixels
_MAX_TICK_LENGTH = 24
"""Maximum number of characters in the name of a class or dataset at an axis."""
_MAX_LABELED_CLASSES = 40
"""A confusion matrix of more classes shows no class names, because they would overlap."""

_MARKERS = {
    "trials": {"color": BLUE, "size": 8, "opacity": 0.6},
    LABELS["baseline"]: {"color": DARK, "size": 12, "symbol": "diamond-open", "line": {"width": 2}},
    LABELS["selected"]: {"color": ORANGE, "size": 12, "symbol": "star"},
}


def plots(records: Records, running: Sequence[TimelineEntry] = ()) -> dict[str, Markup]:
    """Return the plots of a report by name. Plots without data are omitted.

    Args:
        running: Timeline entries of the jobs that are running now.
    """
    figures = {**_search_plots(records), **_final_test_plots(records)}
    timeline = [*records.timeline, *running]
    if timeline:
        figures["timeline"] = plot_timeline(timeline)
    return {name: embed(figure, name) for name, figure in figures.items()}


def _search_plots(records: Records) -> dict[str, go.Figure]:
    """Return Optuna's plots of the search, and a plot of the accuracies of the trials.

    Without a completed trial, return {}.
    """
    goals = records.config.search.goals
    figures: dict[str, go.Figure] = {}
    study = rebuild_study(records, goals[:1])  # only the Pareto front shows several goals
    if not study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        return {}
    target_name = escape(records.study.score_name if goals[0] == "objective" else goals[0])
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        # Optuna warns if only one trial has or lacks a setting, and then uses the other trials.
        warnings.filterwarnings("ignore", "Some regimes for parameter", UserWarning)
        figures["history"] = visualization.plot_optimization_history(study, target_name=target_name)
        if len(goals) in (2, 3):  # Optuna plots only fronts of two or three goals
            figures["pareto"] = visualization.plot_pareto_front(
                rebuild_study(records, goals), target_names=list(goals)
            )
        figures |= _importance_plots(study, target_name)
        if any(trial.intermediate_values for trial in study.get_trials(deepcopy=False)):
            curves = visualization.plot_intermediate_values(study)
            curves.update_layout(xaxis_title="epoch", yaxis_title=escape(records.study.score_name))
            figures["curves"] = curves
    has_accuracies = any(trial.base is not None and trial.new is not None for trial in records.trials)
    if has_accuracies:
        figures["accuracies"] = plot_accuracies(_trials_by_label(records))
    return figures


def _importance_plots(study: optuna.Study, target_name: str) -> dict[str, go.Figure]:
    """Return a plot of the importance of settings, and rows of slices for the most important ones."""
    ranked_settings = list(importances(study))
    if not ranked_settings:
        return {}
    importance = visualization.plot_param_importances(study, evaluator=_EVALUATOR)
    importance.update_layout(xaxis_title="importance", yaxis_title=None)
    figures = {"importance": importance}
    sliced_settings = ranked_settings[:MAX_SLICES]
    for number, first in enumerate(range(0, len(sliced_settings), _SLICES_PER_ROW), 1):
        settings_of_row = sliced_settings[first : first + _SLICES_PER_ROW]
        slices = visualization.plot_slice(study, params=settings_of_row, target_name=target_name)
        slices.update_layout(width=None)  # as wide as the page, not 300 pixels per setting
        figures[f"slice-{number}"] = slices
    return figures


def _trials_by_label(records: Records) -> dict[str, list[TrialRecord]]:
    """Return the trials in three groups, by the name in the legend. The last group is drawn on top."""
    groups: dict[str, list[TrialRecord]] = {"trials": [], LABELS["baseline"]: [], LABELS["selected"]: []}
    for trial in records.trials:
        if trial.is_baseline:
            groups[LABELS["baseline"]].append(trial)
        elif trial is records.selected:
            groups[LABELS["selected"]].append(trial)
        else:
            groups["trials"].append(trial)
    return groups


def rebuild_study(records: Records, goals: Sequence[Goal]) -> optuna.Study:
    """Rebuild the Optuna study from the records of its trials.

    Trials that have settings outside the space, or no value for a goal, count as failed.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=[DIRECTIONS[goal] for goal in goals])
    study.add_trials(_frozen_trial(trial, records, goals) for trial in records.trials)
    return study


def _frozen_trial(trial: TrialRecord, records: Records, goals: Sequence[Goal]) -> FrozenTrial:
    ranges = records.config.search.space.ranges
    values = [getattr(trial, goal) for goal in goals]
    in_space = all(key in ranges and ranges[key].contains(value) for key, value in trial.settings.items())
    if not in_space or trial.state == "FAIL" or None in values:
        return create_trial(state=TrialState.FAIL)
    return create_trial(
        state=TrialState[trial.state],
        values=values if trial.state == "COMPLETE" else None,
        params={escape(key): escape(value) for key, value in trial.settings.items()},
        distributions={escape(key): _distribution(ranges[key]) for key in trial.settings},
        intermediate_values=dict(trial.scores_by_epoch),
    )


def _distribution(setting_range: Range) -> BaseDistribution:
    if isinstance(setting_range, Choice):
        return CategoricalDistribution([escape(choice) for choice in setting_range.choices])
    if setting_range.type == "int":
        return IntDistribution(int(setting_range.low), int(setting_range.high), log=setting_range.log)
    return FloatDistribution(setting_range.low, setting_range.high, log=setting_range.log)


def escape(value: Any) -> Any:
    """Escape a string, because Plotly interprets labels as HTML. Return other values unchanged."""
    return html.escape(value, quote=False) if isinstance(value, str) else value


def _tick_label(name: str) -> str:
    """Return the escaped name. Long names are cut, so that the plot keeps its space."""
    if len(name) > _MAX_TICK_LENGTH:
        name = f"{name[: _MAX_TICK_LENGTH - 1]}…"
    return escape(name)


def importances(study: optuna.Study) -> dict[str, float]:
    """Return importances by setting, highest first, or {} if trials are too few or all scores are equal."""
    completed = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    if len(completed) < MIN_IMPORTANCE_TRIALS or len({trial.value for trial in completed}) == 1:
        return {}
    return get_param_importances(study, evaluator=_EVALUATOR)


def _final_test_plots(records: Records) -> dict[str, go.Figure]:
    test = records.current_test
    if test is None or not test.seeds:
        return {}
    names = test.compared_names
    # Reversed, so that the selected settings are drawn on top.
    runs_by_label = {LABELS[name]: test.runs(name) for name in reversed(names)}
    figures = {"tested": plot_accuracies(runs_by_label)}
    if any(dataset_test.difference for dataset_test in test.datasets.values()):
        figures["pairs"] = plot_seed_pairs(test)
    for number, dataset_test in enumerate(test.datasets.values(), 1):
        runs = getattr(dataset_test, names[0])
        if _metrics_with_confusion(runs):
            figures[f"confusion-{number}"] = plot_confusion(dataset_test, names[0])
        if metrics_by_part(runs):
            figures[f"calibration-{number}"] = plot_calibration(dataset_test, names)
    return figures


def plot_confusion(dataset_test: DatasetTest, name: SettingsName) -> go.Figure:
    """Plot the confusion matrices of base and new classes, summed over the seeds.

    A row contains the images of a class, and its cells are in percent of these images. Results with more than
    `MAX_CONFUSION_CLASSES` classes have no confusion matrix and are left out.

    Args:
        dataset_test: Final test on a dataset.
        name: Settings whose runs are plotted.
    """
    by_part = _metrics_with_confusion(getattr(dataset_test, name))
    figure = make_subplots(
        cols=len(by_part),
        subplot_titles=[f"{part} classes" for part in by_part],
        horizontal_spacing=0.16,
    )
    for column, metrics in enumerate(by_part.values(), 1):
        classnames = [escape(classname) for classname in metrics[0].classnames]
        counts = _confusion_counts(metrics)
        images_per_class = counts.sum(axis=1, keepdims=True)
        figure.add_heatmap(
            z=100 * counts / np.maximum(1, images_per_class),
            zmin=0,
            zmax=100,
            colorscale="Blues",
            colorbar={"title": "%", "thickness": 12},
            showscale=column == len(by_part),
            customdata=np.stack(np.meshgrid(classnames, classnames), axis=-1),
            hovertemplate="%{customdata[1]}, predicted as %{customdata[0]}: %{z:.0f} %<extra></extra>",
            row=1,
            col=column,
        )
        ticks = {
            "tickvals": list(range(len(classnames))),
            "ticktext": [_tick_label(classname) for classname in metrics[0].classnames],
            "showticklabels": len(classnames) <= _MAX_LABELED_CLASSES,
            "tickfont": {"size": 10},
        }
        figure.update_xaxes(title="predicted", tickangle=-60, row=1, col=column, **ticks)
        figure.update_yaxes(title="true class", autorange="reversed", row=1, col=column, **ticks)
    return figure.update_layout(height=_HEAT_MAP_HEIGHT)


def _metrics_with_confusion(runs: RunScores) -> dict[str, list[ClassificationMetrics]]:
    """Return the metrics of runs by part (base or new), for parts that have confusion matrices."""
    by_part = metrics_by_part(runs)
    return {part: metrics for part, metrics in by_part.items() if metrics[0].confusion is not None}


def _confusion_counts(metrics: Sequence[ClassificationMetrics]) -> Floats:
    """Return the numbers of predictions over all seeds, of shape (true classes, predicted classes)."""
    num_classes = len(metrics[0].classnames)
    counts = np.zeros((num_classes, num_classes))
    for metrics_of_seed in metrics:
        for label, predicted, count in metrics_of_seed.confusion or ():
            counts[label, predicted] += count
    return counts


def plot_calibration(dataset_test: DatasetTest, names: Sequence[SettingsName]) -> go.Figure:
    """Plot accuracy against confidence (reliability diagram) for base and new classes, over all seeds.

    Args:
        dataset_test: Final test on a dataset.
        names: Settings whose runs are plotted, each as a line.
    """
    parts = list(metrics_by_part(getattr(dataset_test, names[0])))
    figure = make_subplots(cols=len(parts))
    for column, part in enumerate(parts, 1):
        figure.add_scatter(
            x=[0, 100],
            y=[0, 100],
            mode="lines",
            line=_DOTTED_LINE,
            hoverinfo="skip",
            showlegend=False,
            row=1,
            col=column,
        )
        for name in reversed(names):  # so that the selected settings are drawn on top
            metrics = metrics_by_part(getattr(dataset_test, name)).get(part, [])
            if not metrics:
                continue
            bins = _calibration_bins(metrics)
            figure.add_scatter(
                x=bins.confidences,
                y=bins.accuracies,
                text=[f"{count:.0f} predictions" for count in bins.counts],
                mode="lines+markers",
                name=LABELS[name],
                legendgroup=name,
                showlegend=column == 1,
                line={"color": _MARKERS[LABELS[name]]["color"], "width": 2},
                hovertemplate="confidence %{x:.0f} %, accuracy %{y:.0f} %, %{text}",
                row=1,
                col=column,
            )
        figure.update_xaxes(title=f"confidence, {part} classes (%)", range=[0, 100], row=1, col=column)
        figure.update_yaxes(title="accuracy (%)", range=[0, 100], row=1, col=column)
    return figure


class _Bins(NamedTuple):
    """Bins of a reliability diagram that contain predictions. Confidences and accuracies are in percent."""

    counts: Floats
    confidences: Floats
    accuracies: Floats


def _calibration_bins(metrics: Sequence[ClassificationMetrics]) -> _Bins:
    """Return the bins over all seeds: the sums of the counts, and other means weighted by count."""
    bins = np.array([metrics_of_seed.bins for metrics_of_seed in metrics])
    counts_by_seed, confidences_by_seed, accuracies_by_seed = np.moveaxis(bins, -1, 0)  # (seeds, bins) each
    counts = counts_by_seed.sum(axis=0)
    is_filled = counts > 0
    counts = counts[is_filled]
    return _Bins(
        counts=counts,
        confidences=(counts_by_seed * confidences_by_seed).sum(axis=0)[is_filled] / counts,
        accuracies=(counts_by_seed * accuracies_by_seed).sum(axis=0)[is_filled] / counts,
    )


def plot_accuracies(groups: Mapping[str, Sequence[TrialRecord | RunScore]]) -> go.Figure:
    """Plot the new accuracy against the base accuracy, with dotted lines of equal harmonic mean (H).

    Args:
        groups: Trials or runs by name in the legend. The last group is drawn on top.
    """
    figure = go.Figure()
    points_by_group = {name: _accuracies(group) for name, group in groups.items()}
    all_points: list[tuple[float, float]] = []
    for points in points_by_group.values():
        all_points += points
    bases = [base for base, _ in all_points] or [50.0]  # an empty plot still has axes
    news = [new for _, new in all_points] or [50.0]
    low = min(bases) - 1
    high = max(bases) + 1
    base_grid = [low + (high - low) * step / 50 for step in range(51)]
    for harmonic in _rounded_harmonic_means(all_points):
        # H = 2 base new / (base + new), solved for new.
        line_bases = [base for base in base_grid if 2 * base > harmonic]
        figure.add_scatter(
            x=line_bases,
            y=[harmonic * base / (2 * base - harmonic) for base in line_bases],
            mode="lines",
            line=_DOTTED_LINE,
            hovertemplate=f"H = {harmonic}<extra></extra>",
            showlegend=False,
        )
    for name, points in points_by_group.items():
        figure.add_scatter(
            x=[base for base, _ in points],
            y=[new for _, new in points],
            mode="markers",
            name=name,
            marker=_MARKERS[name],
            hovertemplate="base %{x:.1f}, new %{y:.1f}",
        )
    figure.update_xaxes(title="base accuracy (%)", range=[low, high])
    return figure.update_yaxes(title="new accuracy (%)", range=[min(news) - 1, max(news) + 1])


def _accuracies(group: Sequence[TrialRecord | RunScore]) -> list[tuple[float, float]]:
    """Return base and new accuracy of each trial or run that has both, in percent."""
    return [(each.base, each.new) for each in group if each.base is not None and each.new is not None]


def _rounded_harmonic_means(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the distinct harmonic means of the points, rounded to multiples of 5, in order and without 0."""
    rounded: set[int] = set()
    for base, new in points:
        if base + new:
            harmonic = 2 * base * new / (base + new)
            rounded.add(5 * round(harmonic / 5))
    return sorted(rounded - {0})


def plot_seed_pairs(test: FinalTest) -> go.Figure:
    """Plot a row per dataset: the difference in H of each seed pair, and their mean with its interval."""
    figure = go.Figure().add_vline(x=0, line={"color": "#4a5568", "width": 1.5})
    for row, (name, dataset_test) in enumerate(test.datasets.items()):
        pair_differences = paired_differences(dataset_test.selected, dataset_test.baseline)
        figure.add_scatter(
            x=list(pair_differences.values()),
            y=[row + 0.2] * len(pair_differences),
            mode="markers",
            text=[f"seed {seed}" for seed in pair_differences],
            hovertemplate="%{text}: %{x:+.2f} points<extra></extra>",
            marker={"color": GRAY, "size": 7, "opacity": 0.6},
        )
        difference = dataset_test.difference
        if difference is not None:
            below = difference.mean - difference.low
            above = difference.high - difference.mean
            color = BLUE if difference.mean > 0 else ORANGE
            figure.add_scatter(
                x=[difference.mean],
                y=[row],
                error_x={"array": [above], "arrayminus": [below], "width": 6},
                mode="markers",
                hovertext=escape(f"{name}: {' '.join(format_difference(difference))} points"),
                hoverinfo="text",
                marker={"color": color if difference.excludes_zero else GRAY, "size": 12, "symbol": "square"},
            )
    ticks = [_tick_label(name) for name in test.datasets]
    figure.update_yaxes(tickvals=list(range(len(ticks))), ticktext=ticks, range=[len(ticks) - 0.4, -0.6])
    figure.update_xaxes(title="difference in H (points)")
    return figure.update_layout(showlegend=False, height=120 + 50 * len(ticks))


def plot_timeline(entries: Sequence[TimelineEntry]) -> go.Figure:
    """Plot when each job ran, with a row per slot. Idle times, as between two commands, are shortened."""
    ordered = sorted(entries, key=lambda entry: entry.started)
    starts = _starts_without_idle_time(ordered)
    durations = [max(0.0, (entry.ended - entry.started).total_seconds()) for entry in ordered]
    total = max(start + duration for start, duration in zip(starts, durations, strict=True))
    unit = "minutes"
    seconds_per_unit = 60.0
    if total > _MAX_MINUTES * 60:
        unit = "hours"
        seconds_per_unit = 3600.0
    # Bars of the same stage and outcome share a color and an entry in the legend.
    indices_by_kind: dict[tuple[str, str], list[int]] = {}
    for index, entry in enumerate(ordered):
        indices_by_kind.setdefault((entry.stage, entry.outcome), []).append(index)
    figure = go.Figure()
    for (stage, outcome), indices in indices_by_kind.items():
        figure.add_bar(
            orientation="h",
            base=[starts[index] / seconds_per_unit for index in indices],
            x=[durations[index] / seconds_per_unit for index in indices],
            y=[f"slot {ordered[index].slot}" for index in indices],
            name=escape(stage if outcome == "finished" else f"{stage}, {outcome}"),
            text=[
                escape(f"{ordered[index].job}: {outcome}, {format_duration(durations[index])}")
                for index in indices
            ],
            textposition="none",
            hovertemplate="%{text}<extra></extra>",
            marker={"color": _bar_color(stage, outcome), "line": {"color": "#ffffff", "width": 1}},
        )
    num_slots = max(entry.slot for entry in ordered)
    slots = [f"slot {number}" for number in range(1, num_slots + 1)]
    figure.update_yaxes(categoryorder="array", categoryarray=slots, autorange="reversed")
    figure.update_xaxes(title=f"time ({unit})")
    return figure.update_layout(barmode="overlay", bargap=0.25, height=min(150 + 28 * num_slots, 900))


def _bar_color(stage: str, outcome: str) -> str:
    if outcome in _OUTCOME_COLORS:
        return _OUTCOME_COLORS[outcome]
    color = _STAGE_COLORS.get(stage, DARK)
    is_half_transparent = outcome in ("pruned", "running")
    return f"{color}80" if is_half_transparent else color


def _starts_without_idle_time(ordered: Sequence[TimelineEntry]) -> list[float]:
    """Return the start of each entry in seconds after the first, with idle times cut to `_MAX_IDLE`.

    Args:
        ordered: Entries in order of their start.
    """
    first = ordered[0].started
    busy_until = first
    removed = 0.0
    starts = []
    for entry in ordered:
        idle = (entry.started - busy_until).total_seconds()
        removed += max(0.0, idle - _MAX_IDLE)
        busy_until = max(busy_until, entry.ended)
        starts.append((entry.started - first).total_seconds() - removed)
    return starts


def embed(figure: go.Figure, name: str) -> Markup:
    """Return the HTML of a figure, for a page that includes plotly.js."""
    figure.update_xaxes(**_AXIS)
    figure.update_yaxes(**_AXIS)
    figure.update_layout(
        title=None,
        template="plotly_white",
        font={"family": "system-ui, sans-serif", "size": 13},
        margin={"l": 10, "r": 10, "t": 30, "b": 10},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        height=figure.layout["height"] or 400,
    )
    return Markup(
        to_html(
            figure,
            full_html=False,
            include_plotlyjs=False,
            div_id=f"plot-{name}",
            config={"displayModeBar": False, "responsive": True},
        )
    )
