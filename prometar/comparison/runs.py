"""Any runs, compared: grouped by method and settings, paired by data set and seed."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from prometar.comparison.folders import TrainedRun, read_runs
from prometar.comparison.labels import labels
from prometar.comparison.paired import EVERY_SEED, Comparison, compare, default_reference, seeds_text
from prometar.config.settings import BackboneConfig
from prometar.data.datasets.catalog import place_beside
from prometar.data.splits.objective import OBJECTIVES
from prometar.errors import UserError, one_line

_MOST_NAMED = 6  # folders in a message
Table = dict[str, dict[str, dict[str, dict[int, float]]]]
"""`Results` that are being filled."""


def compare_runs(paths: Sequence[Path], *, to: str | None = None) -> Comparison:
    """The finished runs in folders or below them, against one method.

    Args:
        to: The reference's label, or its method where that has one label (default: prometar, or the first).
    Raises:
        UserError: no finished runs, a damaged record, runs that cannot stand beside each other or be paired.
    """
    runs, unfinished = read_runs(paths)
    where = ", ".join(map(str, paths))
    if not runs and unfinished:
        raise UserError(f"no run in {where} is finished: the commands that trained them go on")
    if not runs:
        raise UserError(f"there is no run in {where}: pass folders that `prometar train` wrote")
    objective = _objective(runs)
    _require_alike((run, _weights(run.config.backbone), run.result.weights) for run in runs)
    names, meanings = labels([run.config for run in runs])
    _require_alike(
        (run, f"code of {piece} in {name}", code)
        for name, run in zip(names, runs, strict=True)
        for piece, code in run.result.code.items()
    )
    methods = dict(zip(names, (run.config.method for run in runs), strict=True))
    if len(methods) == 1:
        raise UserError(f"all runs in {where} are of {names[0]}: there is nothing to compare it to")
    reference = _reference(methods, to)
    results = _results(names, runs)
    columns = list(dict.fromkeys(column for run in runs for column in run.figures))
    datasets = dict.fromkeys(dataset for scores in results.values() for dataset in scores)
    title = f"{len(runs)} runs on {', '.join(datasets)}; objective {one_line(objective)}, in percent"
    found = compare(results, reference=reference, columns=columns, title=title)
    if not found.differences:
        raise UserError(f"nothing can be paired with {reference}: {_there(results)}")
    remarks = [*_about(objective), *meanings, *_unlike(names, runs)]
    if unfinished:
        remarks.append(f"not finished, and left out: {_listed(unfinished)}")
    return replace(found, remarks=(*remarks, *found.remarks))


def _objective(runs: Sequence[TrainedRun]) -> str:
    counts = Counter(run.result.objective for run in runs)
    if len(counts) > 1:
        said = ", ".join(f"{name} ({count} runs)" for name, count in counts.items())
        raise UserError(f"the runs have several objectives, {said}: pass folders of one of them")
    return runs[0].result.objective


def _about(objective: str) -> list[str]:
    if objective in OBJECTIVES and not OBJECTIVES[objective].searches:
        return []
    if objective in OBJECTIVES and OBJECTIVES[objective].leaks:
        return ["these runs were scored on the test images as a search would be"]
    return ["the objective is a search's: figures are of images that it chooses by, not of the test"]


def _reference(methods: Mapping[str, str], to: str | None) -> str:
    """The label that was asked for; `methods` by label."""
    if to is not None and to in methods:
        return to
    wanted = default_reference(list(methods.values())) if to is None else to
    found = [label for label, method in methods.items() if method == wanted]
    if not found:
        raise UserError(f"--to {to} is none of the methods there: {', '.join(methods)}")
    if to is not None and len(found) > 1:
        raise UserError(f"--to {to} stands for several: {'; '.join(found)}: name one of them")
    return found[0]


def _results(names: Sequence[str], runs: Sequence[TrainedRun]) -> Table:
    """Figures by label, data set, column and seed; refuses two folders of one run."""
    held: dict[tuple[str, str, int], Path] = {}
    results: Table = {name: {} for name in names}
    for name, dataset, run in zip(names, _datasets(runs), runs, strict=True):
        seed = run.config.train.seed if run.trains else EVERY_SEED
        first = held.setdefault((name, dataset, seed), run.folder)
        scores = results[name].setdefault(dataset, {})
        unlike = any(
            scores.get(column, {}).get(seed, value) != value for column, value in run.figures.items()
        )
        if first != run.folder and (run.trains or unlike):
            what = f"{name} on {dataset} with {f'seed {seed}' if run.trains else 'other figures'}"
            raise UserError(f"{first} and {run.folder} are both {what}: pass one of them")
        for column, value in run.figures.items():
            scores.setdefault(column, {})[seed] = value
    return results


def _datasets(runs: Sequence[TrainedRun]) -> list[str]:
    """Each run's data set; with its place where a name stands for several, as `folder` and own ones may."""
    kinds: dict[str, set[object]] = {}
    for run in runs:
        kinds.setdefault(run.config.data.name, set()).add((run.result.classnames, _place(run)))
    found = []
    for run in runs:
        data = run.config.data
        several = len(kinds[data.name]) > 1
        label = one_line(f"{data.name} {_place(run) or data.root or ''}".strip() if several else data.name)
        found.append(label)
    labelled = list(zip(found, runs, strict=True))
    _require_alike((run, f"classes of {label}", run.result.classnames) for label, run in labelled)
    _require_alike((run, f"splits of {label}", run.result.data) for label, run in labelled)
    return found


def _require_alike(named: Iterable[tuple[TrainedRun, str, object]]) -> None:
    """What is called the same has to be the same: a run, a name, and what it has there."""
    first = dict[str, tuple[Path, object]]()
    for run, name, value in named:
        folder, other = first.setdefault(name, (run.folder, value))
        if other != value:
            raise UserError(f"{folder} and {run.folder} differ in their {name}: pass one")


def _weights(backbone: BackboneConfig) -> str:
    """What they are called: a tag or a file is of one model, and what runs is in one precision."""
    return f"weights ({' '.join(filter(None, (backbone.name, backbone.pretrained)))}, {backbone.precision})"


_TRAINED_WITH = ("data.shots", "train.epochs", "train.batch_size")
_BACKBONE = ("backbone.name", "backbone.pretrained", "backbone.precision")


def _unlike(names: Sequence[str], runs: Sequence[TrainedRun]) -> list[str]:
    """What methods may differ in besides, a remark each: settings that are no method's alone."""
    said = []
    for key in (*_TRAINED_WITH, *_BACKBONE):
        had: dict[str, str] = {}
        for name, run in zip(names, runs, strict=True):
            if run.trains or key in _BACKBONE:
                had.setdefault(name, str(run.config.flat()[key]))
        if len(set(had.values())) > 1:
            said.append(one_line(f"{key} differ: {', '.join(f'{name} {had[name]}' for name in had)}"))
    return said


def _place(run: TrainedRun) -> str:
    data = run.config.data
    return place_beside(data.name, data.root, data.args)


def _there(results: Table) -> str:
    """Which seeds each label has, data set by data set."""
    said = []
    for name, scores_of in results.items():
        seeds = {d: {s for column in scores.values() for s in column} for d, scores in scores_of.items()}
        had = ", ".join(f"{dataset} {seeds_text(own)}".strip() for dataset, own in seeds.items())
        said.append(f"{name} has {had}")
    return "; ".join(said)


def _listed(folders: Iterable[Path]) -> str:
    names = [one_line(str(folder)) for folder in folders]
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(names[:_MOST_NAMED]) + more
