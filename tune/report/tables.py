"""Tables of a report as rows of texts. Page, terminal and notebook show the same ones."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from prometar.cli.console import format_duration
from tune.records.folder import STATES, Records
from tune.records.schema import RunScore, TrialRecord, seed_means
from tune.report.formatting import NONE, listed, number, points, setting, spread
from tune.report.statements import NAMES, side_runs
from tune.space.ranges import Settings

SHOWN_SETTINGS = 8
"""Changed settings that a row lists, at most."""


@dataclass(frozen=True)
class Table:
    """A table. The first `texts` columns are texts, the others are numbers.

    Args:
        rows: Cells of each row, with its kind: "selected", "baseline" or "".
    """

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, tuple[str, ...]]]
    texts: int = 1


def summary_tables(records: Records) -> list[Table]:
    """Tables that fit on a screen: final test and confirmation."""
    return [table for table in (_final_test(records), _confirmation(records)) if table and table.rows]


def all_tables(records: Records) -> dict[str, Table]:
    """Tables of the page by name."""
    found = {"settings": _settings(records), "trials": _trials(records), "costs": _costs(records)}
    return {name: table for name, table in found.items() if table.rows}


def changes(settings: Settings, records: Records) -> str:
    """Settings that differ from the default settings."""
    default = records.baseline.settings if records.baseline else {}
    found = [f"{key} {setting(value)}" for key, value in settings.items() if value != default.get(key)]
    more = len(found) - SHOWN_SETTINGS
    return ", ".join(found[:SHOWN_SETTINGS]) + (f" and {more} more" if more > 0 else "")


def _final_test(records: Records) -> Table | None:
    test = records.final_test
    if test is None or not test.seeds:
        return None
    rows = list[tuple[str, tuple[str, ...]]]()
    for dataset, found in test.datasets.items():
        sides = {"baseline": found.baseline} | ({} if test.same else {"selected": found.selected})
        for side, runs in sides.items():
            name = NAMES[side] + (f", {dataset}" if len(test.datasets) > 1 else "")
            rows.append((side, (name, *_figures(runs), str(sum(run.finished for run in runs)), NONE)))
        if not test.same:
            differences = (found.base_difference, found.new_difference, found.difference)
            pairs = str(found.difference.n) if found.difference else NONE
            middles, bounds = zip(
                *(points(each).split(" ", 1) if each else (NONE, "") for each in differences), strict=True
            )
            rows.append(("", ("difference", *middles, pairs, NONE)))
            rows.append(("", (f"{test.dataset_level}% CI", *bounds, "", NONE)))
        if found.published is not None:
            rows.append(("", ("published", NONE, NONE, number(found.published), NONE, "cited")))
    title = f"Final test: {test.epochs} epochs, test images, mean ± standard deviation over seeds"
    columns: tuple[str, ...] = ("", "base (%)", "new (%)", "H (%)", "runs")
    if any(cells[-1] != NONE for _, cells in rows):
        return Table(title, (*columns, ""), rows)
    return Table(title, columns, [(kind, cells[:-1]) for kind, cells in rows])


def _figures(runs: Iterable[RunScore]) -> Iterator[str]:
    runs = list(runs)
    for figure in ("base", "new", "objective"):
        yield spread(seed_means(runs, figure).values())


def _confirmation(records: Records) -> Table | None:
    confirmation = records.confirmation
    if confirmation is None or not confirmation.seeds:
        return None
    ranked = sorted(confirmation.candidates, key=lambda c: -c.mean if c.mean is not None else 1.0)
    by_number = {trial.number: trial for trial in records.trials}
    rows = list[tuple[str, tuple[str, ...]]]()
    for each in ranked:
        kind = "selected" if each.number == confirmation.selected else ""
        tags = ["default settings"] * each.baseline + [kind] * bool(kind)
        trial = by_number.get(each.number)
        fresh = [value for seed, value in each.by_seed.items() if seed in confirmation.seeds]
        cells = (
            f"trial {each.number}" + (f" ({', '.join(tags)})" if tags else ""),
            number(trial.score if trial else None),
            number(mean(fresh)) if fresh else NONE,
            spread(each.by_seed.values()) if each.mean is not None else "failed",
        )
        rows.append((kind, cells))
    images = "test" if records.study.leaks else "validation"
    title = (
        f"Confirmation: {records.study.score} on {images} images, fresh {listed(confirmation.seeds, 'seed')}"
    )
    return Table(title, ("", "search", "fresh seeds", "all seeds"), rows)


def _settings(records: Records) -> Table:
    """Searched settings, changed ones first."""
    default = records.baseline.settings if records.baseline else {}
    selected = records.selected.settings if records.selected else {}
    ranges = records.search.space.describe()
    changed = {key: key in selected and selected[key] != default.get(key) for key in ranges}
    rows = [
        (
            "selected" if changed[key] else "",
            (key, setting(default.get(key)), setting(selected.get(key)), ranges[key]),
        )
        for key in sorted(ranges, key=lambda key: not changed[key])
    ]
    return Table("Settings", ("setting", "default", "selected", "range"), rows, texts=4)


def _trials(records: Records) -> Table:
    """All trials: completed ones by score, then pruned and failed ones."""
    order = list(STATES)
    ranked = sorted(
        records.trials,
        key=lambda t: (order.index(t.state), -(t.score or 0.0), -t.epoch, t.number),
    )
    rows = [(_kind(trial, records), tuple(_cells(trial, records))) for trial in ranked]
    score = records.study.score
    columns = ("trial", "state", "changed settings", "notes", score, "base", "new", "epochs", "time")
    return Table("Trials", columns, rows, texts=4)


def _cells(trial: TrialRecord, records: Records) -> Iterator[str]:
    yield str(trial.number)
    yield STATES[trial.state] + (" (default settings)" if trial.baseline else "")
    yield changes(trial.settings, records) or NONE
    yield "; ".join(filter(None, (trial.reason, *trial.notes))) or NONE
    yield from map(number, (trial.objective, trial.base, trial.new))
    yield str(trial.epoch)
    yield format_duration(trial.seconds)


def _kind(trial: TrialRecord, records: Records) -> str:
    if records.selected and trial.number == records.selected.number:
        return "selected"
    return "baseline" if trial.baseline else ""


def _costs(records: Records) -> Table:
    """Training time and allocated resources by stage."""
    confirmation, test = records.confirmation, records.final_test
    confirmed = [run for each in confirmation.candidates for run in each.runs] if confirmation else []
    stages = {
        "search": [run for trial in records.trials for run in trial.runs],
        "confirmation": [run for run in confirmed if confirmation and run.seed in confirmation.seeds],
        "final test": side_runs(test) if test else [],
    }
    rows = [("", _cost(name, runs)) for name, runs in stages.items() if runs]
    return Table("Cost", ("stage", "runs", "training time", "CPU hours", "GPU hours"), rows)


def _cost(name: str, runs: Sequence[RunScore]) -> tuple[str, ...]:
    timed = [(run.seconds or 0.0, run.cpus or 0.0, run.gpus or 0.0) for run in runs]
    cpu, gpu = (sum(row[0] * row[place] for row in timed) / 3600 for place in (1, 2))
    return name, str(len(timed)), format_duration(sum(row[0] for row in timed)), f"{cpu:.2f}", f"{gpu:.2f}"
