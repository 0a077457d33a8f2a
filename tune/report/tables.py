"""Tables of a report as rows of strings. The terminal and notebooks show only the summary tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal, NamedTuple

from prometar.cli.console import format_duration
from prometar.metrics import harmonic_mean
from tune.records.folder import STATE_NAMES, Records
from tune.records.schema import (
    PARTS,
    Candidate,
    DatasetTest,
    FinalTest,
    RunScore,
    RunScores,
    SettingsName,
    TrialRecord,
    metrics_by_part,
    seed_means,
)
from tune.report.formatting import DASH, format_difference, format_mean, format_number, format_setting, phrase
from tune.report.statements import LABELS
from tune.space.ranges import Settings

_MAX_SHOWN_SETTINGS = 8  # maximum number of changed settings that are listed in one table row


class Row(NamedTuple):
    """Row of a table.

    Args:
        cells: Text of each cell.
        css_class: Class of the row in HTML. Rows of selected and default settings have a background.
    """

    cells: tuple[str, ...]
    css_class: Literal["selected", "baseline", ""] = ""


@dataclass(frozen=True)
class Table:
    """Table with columns of text, followed by columns of numbers.

    Args:
        num_text_columns: Number of columns with text.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Row]
    num_text_columns: int = 1


def summary_tables(records: Records) -> list[Table]:
    """Return the nonempty tables of the final test and the confirmation."""
    return [table for table in (_final_test(records), _confirmation(records)) if table and table.rows]


def detail_tables(records: Records) -> dict[str, Table]:
    """Return the nonempty tables that only report.html shows: metrics, classes, settings, trials, costs."""
    tables = {
        "metrics": _metrics(records),
        "classes": _classes(records),
        "settings": _settings(records),
        "trials": _trials(records),
        "costs": _costs(records),
    }
    return {name: table for name, table in tables.items() if table.rows}


def _describe_changes(settings: Settings, records: Records) -> str:
    """List the settings that differ from the default settings, with their values."""
    default = records.baseline.settings if records.baseline else {}
    changed = {key: value for key, value in settings.items() if value != default.get(key)}
    texts = [f"{key} = {format_setting(value)}" for key, value in changed.items()]
    shown = ", ".join(texts[:_MAX_SHOWN_SETTINGS])
    num_more = len(texts) - _MAX_SHOWN_SETTINGS
    return f"{shown} and {num_more} more" if num_more > 0 else shown


def _final_test(records: Records) -> Table | None:
    test = records.current_test
    if test is None or not test.seeds:
        return None
    rows: list[Row] = []
    for dataset, dataset_test in test.datasets.items():
        for name, label, runs in _tested_settings(test, dataset):
            rows.append(Row(_accuracy_cells(label, runs), css_class=name))
        if not test.baseline_selected:
            rows += _difference_rows(dataset_test, test.interval_name)
        if dataset_test.published is not None:
            rows.append(Row(("published (cited)", DASH, DASH, format_number(dataset_test.published), DASH)))
    title = "Final test: test images, mean ± standard deviation over seeds"
    return Table(title, ("", "base (%)", "new (%)", "H (%)", "n"), rows)


def _tested_settings(test: FinalTest, dataset: str) -> Iterator[tuple[SettingsName, str, RunScores]]:
    """Yield name, label and runs of the settings tested on a dataset, default settings first."""
    suffix = f", {dataset}" if len(test.datasets) > 1 else ""
    for name in reversed(test.compared_names):
        yield name, f"{LABELS[name]}{suffix}", getattr(test.datasets[dataset], name)


def _accuracy_cells(label: str, runs: RunScores) -> tuple[str, ...]:
    """Return the label, the means of base, new and H, and the number of finished runs."""
    num_finished = sum(run.objective is not None for run in runs)
    return (
        label,
        format_mean(seed_means(runs, "base").values()),
        format_mean(seed_means(runs, "new").values()),
        format_mean(seed_means(runs, "objective").values()),
        str(num_finished),
    )


def _difference_rows(dataset_test: DatasetTest, interval_name: str) -> list[Row]:
    """Return a row with the mean differences on a dataset, and a row with their intervals."""
    centers: list[str] = []
    intervals: list[str] = []
    for difference in (dataset_test.base_difference, dataset_test.new_difference, dataset_test.difference):
        center, interval = format_difference(difference) if difference else (DASH, "")
        centers.append(center)
        intervals.append(interval)
    num_pairs = str(dataset_test.difference.n) if dataset_test.difference else DASH
    return [
        Row(("difference", *centers, num_pairs)),
        Row((interval_name, *intervals, "")),
    ]


_METRIC_COLUMNS = (
    "macro F1, base (%)",
    "macro F1, new (%)",
    "calibration error, base",
    "calibration error, new",
    "joint base (%)",
    "joint new (%)",
    "joint H (%)",
)


def _metrics(records: Records) -> Table:
    """Return the table of other metrics in the final test: a row per dataset and settings."""
    test = records.current_test
    rows: list[Row] = []
    if test is not None:
        for dataset in test.datasets:
            for name, label, runs in _tested_settings(test, dataset):
                if metrics_by_part(runs):
                    rows.append(Row((label, *_metric_cells(runs)), css_class=name))
    return Table("Other metrics", ("", *_METRIC_COLUMNS), rows)


def _metric_cells(runs: RunScores) -> list[str]:
    """Return the means over the runs, in the order of `_METRIC_COLUMNS`."""
    by_part = metrics_by_part(runs)
    base = by_part.get("base", [])
    new = by_part.get("new", [])
    joint = [run.joint_accuracies for run in runs if {"base", "new"} <= run.joint_accuracies.keys()]
    return [
        format_mean([each.macro_f1 for each in base]),
        format_mean([each.macro_f1 for each in new]),
        format_mean([each.calibration_error for each in base]),
        format_mean([each.calibration_error for each in new]),
        format_mean([each["base"] for each in joint]),
        format_mean([each["new"] for each in joint]),
        format_mean([harmonic_mean(each) for each in joint]),
    ]


def _classes(records: Records) -> Table:
    """Return the table of accuracies by class in the final test, as means over the seeds."""
    test = records.current_test
    columns: tuple[str, ...] = ("class", "part", "default (%)")
    rows: list[Row] = []
    if test is not None:
        if not test.baseline_selected:
            columns = (*columns, "selected (%)", "difference")
        for dataset, dataset_test in test.datasets.items():
            for part in PARTS:
                label = f"{part}, {dataset}" if len(test.datasets) > 1 else part
                rows += _class_rows(dataset_test, part, label, with_selected=not test.baseline_selected)
    return Table("Accuracy by class", columns, rows, num_text_columns=2)


def _class_rows(dataset_test: DatasetTest, part: str, label: str, *, with_selected: bool) -> Iterator[Row]:
    """Yield a row per class of a part (base or new) of a dataset."""
    baseline_accuracies = _class_accuracies(dataset_test.baseline, part)
    selected_accuracies = _class_accuracies(dataset_test.selected, part)
    for classname in dict.fromkeys((*baseline_accuracies, *selected_accuracies)):
        baseline = baseline_accuracies.get(classname)
        selected = selected_accuracies.get(classname)
        cells = [classname, label, format_number(baseline)]
        if with_selected:
            difference = DASH
            if baseline is not None and selected is not None:
                difference = f"{selected - baseline:+.1f}"
            cells += [format_number(selected), difference]
        yield Row(tuple(cells))


def _class_accuracies(runs: RunScores, part: str) -> dict[str, float]:
    """Return the mean accuracy over the seeds by class, or {} if runs have no metrics."""
    metrics = metrics_by_part(runs).get(part, [])
    if not metrics:
        return {}
    return {
        classname: mean(each.class_accuracies[index] for each in metrics)
        for index, classname in enumerate(metrics[0].classnames)
    }


def _confirmation(records: Records) -> Table | None:
    confirmation = records.confirmation
    if confirmation is None or not confirmation.seeds:
        return None
    trials = {trial.number: trial for trial in records.trials}
    # Seeds of the search count only if trials trained for as many epochs as the reruns.
    all_seeds = {seed for candidate in confirmation.candidates for seed in candidate.mean_by_seed}
    search_counts = not all_seeds <= set(confirmation.seeds)
    rows: list[Row] = []
    for candidate in sorted(confirmation.candidates, key=_order_of_candidate):
        label = f"trial {candidate.number}"
        is_selected = candidate.number == confirmation.selected_number
        remarks = []
        if candidate.is_baseline:
            remarks.append("default settings")
        if is_selected:
            remarks.append("selected")
        if remarks:
            label += f" ({', '.join(remarks)})"
        trial = trials.get(candidate.number)
        search_score = trial.objective_if_completed if trial else None
        cells = [label, format_mean([search_score] if search_score is not None else [])]
        scores = candidate.mean_by_seed
        if search_counts:
            fresh_scores = [score for seed, score in scores.items() if seed in confirmation.seeds]
            cells.append(format_mean([mean(fresh_scores)] if fresh_scores else []))
        has_failed = candidate.mean is None
        cells.append("failed" if has_failed else format_mean(scores.values()))
        rows.append(Row(tuple(cells), css_class="selected" if is_selected else ""))
    title = f"Confirmation (score as in the search, fresh {phrase(confirmation.seeds, 'seed')})"
    columns = ["", "search", "fresh seeds"]
    if search_counts:
        columns.append("all seeds")
    return Table(title, tuple(columns), rows)


def _order_of_candidate(candidate: Candidate) -> tuple[bool, float]:
    """Return the sort key of candidates: highest mean first, failed ones last."""
    if candidate.mean is None:
        return True, 0.0
    return False, -candidate.mean


def _settings(records: Records) -> Table:
    """Return the table of searched settings, changed settings first."""
    default = records.baseline.settings if records.baseline else {}
    selected = records.selected.settings if records.selected else {}
    ranges = records.config.search.space.describe()
    changed = [key for key in ranges if key in selected and selected[key] != default.get(key)]
    unchanged = [key for key in ranges if key not in changed]
    rows: list[Row] = []
    for key in (*changed, *unchanged):
        cells = (key, format_setting(default.get(key)), format_setting(selected.get(key)), ranges[key])
        rows.append(Row(cells, css_class="selected" if key in changed else ""))
    return Table("Settings", ("setting", "default", "selected", "range"), rows, num_text_columns=4)


def _trials(records: Records) -> Table:
    """Return the table of trials: completed ones by objective, then pruned and failed ones by epochs."""
    rows: list[Row] = []
    for trial in sorted(records.trials, key=_order_of_trial):
        rows.append(Row(_trial_cells(trial, records), css_class=_trial_class(trial, records)))
    score = records.study.score_name
    columns = ("trial", "state", "changed settings", "notes", score, "base", "new", "epochs", "time")
    return Table("Trials", columns, rows, num_text_columns=4)


def _order_of_trial(trial: TrialRecord) -> tuple[int, float, int, int]:
    """Return the sort key of trials: state, then highest objective, most epochs and lowest number first."""
    state_index = list(STATE_NAMES).index(trial.state)
    objective = trial.objective_if_completed or 0.0  # trials that are not completed are sorted by epochs
    return state_index, -objective, -trial.epoch, trial.number


def _trial_cells(trial: TrialRecord, records: Records) -> tuple[str, ...]:
    state = STATE_NAMES[trial.state]
    if trial.is_baseline:
        state += " (default settings)"
    remarks = []
    if trial.source:
        remarks.append(f"enqueued ({trial.source})")
    elif trial.origin == "enqueued":
        remarks.append("enqueued")
    if trial.reason:
        remarks.append(trial.reason)
    remarks += trial.notes
    return (
        str(trial.number),
        state,
        _describe_changes(trial.settings, records) or DASH,
        "; ".join(remarks) or DASH,
        format_number(trial.objective),
        format_number(trial.base),
        format_number(trial.new),
        str(trial.epoch),
        format_duration(trial.seconds),
    )


def _trial_class(trial: TrialRecord, records: Records) -> Literal["selected", "baseline", ""]:
    if trial is records.selected:
        return "selected"
    return "baseline" if trial.is_baseline else ""


def _costs(records: Records) -> Table:
    """Return the table of training time and allocated resources by stage."""
    runs_by_stage: dict[str, list[RunScore]] = {
        "search": [run for trial in records.trials for run in trial.runs],
        "confirmation": records.confirmation.fresh_runs if records.confirmation else [],
        "final test": records.final_test.runs() if records.final_test else [],
    }
    rows: list[Row] = []
    for stage, runs in runs_by_stage.items():
        if not runs:
            continue
        seconds = sum(run.seconds or 0.0 for run in runs)
        cpu_seconds = sum((run.seconds or 0.0) * (run.cpus or 0.0) for run in runs)
        gpu_seconds = sum((run.seconds or 0.0) * (run.gpus or 0.0) for run in runs)
        cells = (
            stage,
            str(len(runs)),
            format_duration(seconds),
            f"{cpu_seconds / 3600:.2f}",
            f"{gpu_seconds / 3600:.2f}",
        )
        rows.append(Row(cells))
    return Table("Cost", ("stage", "runs", "training time", "CPU hours", "GPU hours"), rows)
