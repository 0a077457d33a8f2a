"""Tables of a report as rows of strings. The terminal and notebooks show only the summary tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from prometar.cli.console import format_duration
from prometar.metrics import harmonic_mean
from tune.records.folder import STATE_NAMES, Records
from tune.records.schema import (
    PARTS,
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


@dataclass(frozen=True)
class Table:
    """Table with columns of text, followed by columns of numbers.

    Args:
        rows: CSS class ("selected", "baseline" or "") and cells of each row.
        num_text_columns: Number of columns with text.
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, tuple[str, ...]]]
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
    more = len(texts) - _MAX_SHOWN_SETTINGS
    return ", ".join(texts[:_MAX_SHOWN_SETTINGS]) + (f" and {more} more" if more > 0 else "")


def _final_test(records: Records) -> Table | None:
    test = records.current_test
    if test is None or not test.seeds:
        return None
    rows: list[tuple[str, tuple[str, ...]]] = []
    for dataset, dataset_test in test.datasets.items():
        for name in reversed(test.compared_names):  # default settings first
            runs = getattr(dataset_test, name)
            label = LABELS[name] + (f", {dataset}" if len(test.datasets) > 1 else "")
            means = [format_mean(seed_means(runs, goal).values()) for goal in ("base", "new", "objective")]
            rows.append((name, (label, *means, str(sum(run.objective is not None for run in runs)))))
        if not test.baseline_selected:
            differences = (dataset_test.base_difference, dataset_test.new_difference, dataset_test.difference)
            num_pairs = str(dataset_test.difference.n) if dataset_test.difference else DASH
            formatted = [format_difference(each) if each else (DASH, "") for each in differences]
            centers, bounds = zip(*formatted, strict=True)
            rows.append(("", ("difference", *centers, num_pairs)))
            rows.append(("", (test.interval_name, *bounds, "")))
        if dataset_test.published is not None:
            rows.append(("", ("published (cited)", DASH, DASH, format_number(dataset_test.published), DASH)))
    title = "Final test: test images, mean ± standard deviation over seeds"
    return Table(title, ("", "base (%)", "new (%)", "H (%)", "n"), rows)


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
    rows: list[tuple[str, tuple[str, ...]]] = []
    for name, label, runs in _tested_settings(records):
        by_part = metrics_by_part(runs)
        joint = [run.joint_accuracies for run in runs if run.joint_accuracies.keys() >= set(PARTS)]
        if not by_part:
            continue
        values = [
            *([each.macro_f1 for each in by_part.get(part, [])] for part in PARTS),
            *([each.calibration_error for each in by_part.get(part, [])] for part in PARTS),
            *([each[part] for each in joint] for part in PARTS),
            [harmonic_mean(each) for each in joint],
        ]
        rows.append((name, (label, *map(format_mean, values))))
    return Table("Other metrics", ("", *_METRIC_COLUMNS), rows)


def _tested_settings(records: Records) -> Iterator[tuple[SettingsName, str, RunScores]]:
    """Yield name, label and runs of the tested settings, by dataset, default settings first."""
    test = records.current_test
    if test is None:
        return
    for dataset, dataset_test in test.datasets.items():
        for name in reversed(test.compared_names):
            suffix = f", {dataset}" if len(test.datasets) > 1 else ""
            yield name, LABELS[name] + suffix, getattr(dataset_test, name)


def _classes(records: Records) -> Table:
    """Return the table of accuracies by class in the final test, as means over the seeds."""
    test = records.current_test
    rows: list[tuple[str, tuple[str, ...]]] = []
    datasets = test.datasets if test else {}
    for dataset, dataset_test in datasets.items():
        for part in PARTS:
            label = f"{part}, {dataset}" if len(datasets) > 1 else part
            baseline_accuracies = _class_accuracies(dataset_test.baseline, part)
            selected_accuracies = _class_accuracies(dataset_test.selected, part)
            for classname in dict.fromkeys((*baseline_accuracies, *selected_accuracies)):
                baseline = baseline_accuracies.get(classname)
                selected = selected_accuracies.get(classname)
                cells = [format_number(baseline)]
                if test and not test.baseline_selected:
                    cells.append(format_number(selected))
                    if baseline is None or selected is None:
                        cells.append(DASH)
                    else:
                        cells.append(f"{selected - baseline:+.1f}")
                rows.append(("", (classname, label, *cells)))
    columns = ["class", "part", "default (%)"]
    if test and not test.baseline_selected:
        columns += ["selected (%)", "difference"]
    return Table("Accuracy by class", tuple(columns), rows, num_text_columns=2)


def _class_accuracies(runs: RunScores, part: str) -> dict[str, float]:
    """Return the mean accuracy over the seeds by class, or {} if runs have no metrics."""
    metrics = metrics_by_part(runs).get(part, [])
    if not metrics:
        return {}
    means = map(mean, zip(*(each.class_accuracies for each in metrics), strict=True))
    return dict(zip(metrics[0].classnames, means, strict=True))


def _confirmation(records: Records) -> Table | None:
    confirmation = records.confirmation
    if confirmation is None or not confirmation.seeds:
        return None
    ranked = sorted(confirmation.candidates, key=lambda c: (c.mean is None, -(c.mean or 0.0)))  # failed last
    by_number = {trial.number: trial for trial in records.trials}
    # Seeds of the search count only if trials trained for as many epochs as the reruns.
    search_counts = any(seed not in confirmation.seeds for each in ranked for seed in each.mean_by_seed)
    rows: list[tuple[str, tuple[str, ...]]] = []
    for candidate in ranked:
        is_selected = candidate.number == confirmation.selected_number
        tags = ["default settings"] * candidate.is_baseline + ["selected"] * is_selected
        trial = by_number.get(candidate.number)
        score = trial.objective_if_completed if trial else None
        cells = [
            f"trial {candidate.number}" + (f" ({', '.join(tags)})" if tags else ""),
            format_mean([score] if score is not None else []),
        ]
        if search_counts:
            fresh = [value for seed, value in candidate.mean_by_seed.items() if seed in confirmation.seeds]
            cells.append(format_mean([mean(fresh)] if fresh else []))
        cells.append(format_mean(candidate.mean_by_seed.values()) if candidate.mean is not None else "failed")
        rows.append(("selected" if is_selected else "", tuple(cells)))
    title = f"Confirmation (score as in the search, fresh {phrase(confirmation.seeds, 'seed')})"
    columns = ["", "search", "fresh seeds"]
    if search_counts:
        columns.append("all seeds")
    return Table(title, tuple(columns), rows)


def _settings(records: Records) -> Table:
    """Return the table of searched settings, changed settings first."""
    default = records.baseline.settings if records.baseline else {}
    selected = records.selected.settings if records.selected else {}
    ranges = records.config.search.space.describe()
    changed = {key: key in selected and selected[key] != default.get(key) for key in ranges}
    rows = [
        (
            "selected" if changed[key] else "",
            (key, format_setting(default.get(key)), format_setting(selected.get(key)), ranges[key]),
        )
        for key in sorted(ranges, key=lambda key: not changed[key])
    ]
    return Table("Settings", ("setting", "default", "selected", "range"), rows, num_text_columns=4)


def _trials(records: Records) -> Table:
    """Return the table of trials: completed ones by objective, then pruned and failed ones by epochs."""
    trials = sorted(records.trials, key=lambda t: (-(t.objective_if_completed or 0.0), -t.epoch, t.number))
    trials.sort(key=lambda t: list(STATE_NAMES).index(t.state))  # a stable sort
    rows = [(_css_class(trial, records), tuple(_trial_cells(trial, records))) for trial in trials]
    score = records.study.score_name
    columns = ("trial", "state", "changed settings", "notes", score, "base", "new", "epochs", "time")
    return Table("Trials", columns, rows, num_text_columns=4)


def _trial_cells(trial: TrialRecord, records: Records) -> Iterator[str]:
    yield str(trial.number)
    yield STATE_NAMES[trial.state] + (" (default settings)" if trial.is_baseline else "")
    yield _describe_changes(trial.settings, records) or DASH
    enqueued = f"enqueued ({trial.source})" if trial.source else "enqueued" * (trial.origin == "enqueued")
    yield "; ".join(filter(None, (enqueued, trial.reason, *trial.notes))) or DASH
    yield from map(format_number, (trial.objective, trial.base, trial.new))
    yield str(trial.epoch)
    yield format_duration(trial.seconds)


def _css_class(trial: TrialRecord, records: Records) -> str:
    if trial is records.selected:
        return "selected"
    return "baseline" if trial.is_baseline else ""


def _costs(records: Records) -> Table:
    """Return the table of training time and allocated resources by stage."""
    confirmation = records.confirmation
    test = records.final_test
    candidate_runs = [run for each in confirmation.candidates for run in each.runs] if confirmation else []
    stages = {
        "search": [run for trial in records.trials for run in trial.runs],
        "confirmation": [run for run in candidate_runs if confirmation and run.seed in confirmation.seeds],
        "final test": test.runs() if test else [],
    }
    rows = []
    for name, runs in stages.items():
        seconds = sum(run.seconds or 0.0 for run in runs)
        cpu_hours = sum((run.seconds or 0.0) * (run.cpus or 0.0) for run in runs) / 3600
        gpu_hours = sum((run.seconds or 0.0) * (run.gpus or 0.0) for run in runs) / 3600
        cells = (name, str(len(runs)), format_duration(seconds), f"{cpu_hours:.2f}", f"{gpu_hours:.2f}")
        rows += [("", cells)] if runs else []
    return Table("Cost", ("stage", "runs", "training time", "CPU hours", "GPU hours"), rows)
