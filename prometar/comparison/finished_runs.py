"""Comparison of finished runs in folders."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometar.comparison.paired import EVERY_SEED, Difference, Results, compare, correct_for_all
from prometar.config.settings import Config, load_config
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import file_name
from prometar.embedded.datasets import RENDERED
from prometar.errors import UserError, one_line
from prometar.io.files import resolve_path
from prometar.metrics import ACCURACY, HARMONIC, harmonic_mean
from prometar.training.run_result import RESULT_FILE, RunResult, read_result

_NOTED_SETTINGS = (
    "data.shots",
    "train.epochs",
    "train.batch_size",
    "backbone.name",
    "backbone.pretrained",
    "backbone.precision",
)
"""Settings that cause a note if they differ between methods."""
_MAX_LABEL_LENGTH = 60
"""Maximum length of a label that lists settings. Longer labels show a number instead of the settings."""


@dataclass(frozen=True)
class FinishedRun:
    """Configuration and result of a finished run."""

    folder: Path
    config: Config
    result: RunResult

    @property
    def seed(self) -> int:
        """Seed of the run, or EVERY_SEED if it is untrained."""
        trained = "direct_ce" in self.result.last_epoch  # every trained run records this loss
        return self.config.train.seed if trained else EVERY_SEED

    @property
    def dataset(self) -> str:
        """Name of the dataset.

        For the user's own images and custom loaders, the name includes root and arguments, because one name
        may stand for different images.
        """
        data = self.config.data
        if data.name in BENCHMARKS or data.name in RENDERED:
            return data.name
        words = [data.name]
        if data.root:
            words.append(data.root)
        words += [f"{key}={value}" for key, value in sorted(data.args.items())]
        return one_line(" ".join(words))

    @property
    def scores(self) -> dict[str, float]:
        """Scores in percent by metric: base, new and H, or accuracy."""
        scores: dict[str, float] = {}
        for name, accuracy in self.result.accuracies.items():
            metric = ACCURACY if name == "all" else one_line(name)
            scores[metric] = accuracy
        if {"base", "new"} <= scores.keys():
            scores[HARMONIC] = harmonic_mean({"base": scores["base"], "new": scores["new"]})
        return scores

    @property
    def all_scores(self) -> dict[str, float]:
        """All values that can be compared, by metric: `scores`, and other values such as "joint_H".

        Values are percentages, and calibration errors are percentage points.
        """
        scores = self.scores
        for name, metrics in self.result.metrics.items():
            prefix = "" if name == "all" else f"{one_line(name)}_"
            scores[f"{prefix}macro_f1"] = metrics.macro_f1
            scores[f"{prefix}calibration_error"] = metrics.calibration_error
        joint = self.result.joint_accuracies
        if joint:
            scores |= {f"joint_{name}": accuracy for name, accuracy in joint.items()}
            scores[f"joint_{HARMONIC}"] = harmonic_mean(joint)
        return scores


def compare_runs(
    paths: Sequence[Path], *, reference: str | None = None, metrics: Sequence[str] = ()
) -> tuple[list[Difference], list[str]]:
    """Compare finished runs with those of a reference. Return differences and notes for the user.

    What is compared depends on the folders:

    - A study: the runs of its final test, with the labels "STUDY selected" and "STUDY default".
    - Several folders of `prometar reproduce` that share a method: each method in one folder is compared with
      the same method in the reference folder. With `--tune`, the selected settings of a method are compared
      with its selected settings in the reference folder, and published settings with published settings.
    - Other folders: methods, and settings of a method (`label_methods`). Studies below these folders are
      skipped, except the studies of `prometar reproduce --tune`. The labels of their final-test runs are
      "METHOD selected" and "METHOD published".

    Args:
        paths: Folders of runs, or folders that contain such folders.
        reference: Label of the reference, or the name of the reference folder. Default: the first study or
            the first folder of `prometar reproduce`. For other folders, the default is the label "prometar"
            or, if it is absent, the first label.
        metrics: Metrics to compare (`FinishedRun.all_scores`). Default: base, new and H, or accuracy.

    Raises:
        UserError: the reference or a metric is unknown, a file of a run is corrupt, a study has no final
            test, or the runs cannot be compared.
    """
    resolved = [resolve_path(path) for path in paths]
    paths = list(dict.fromkeys(resolved))
    studies = [path for path in paths if _is_study(path)]
    others = [path for path in paths if path not in studies]
    if not studies and all(_is_reproduction(path) for path in paths):
        by_path = {path: _reproduced_runs(path) for path in paths}
        if _share_methods(by_path):
            return _compare_folders(by_path, reference, metrics)

    tested = _tested_runs_of(studies, others)
    labeled_runs = [*tested, *_labeled_runs_below(others)]
    labels = [label for label, _ in labeled_runs]
    runs = [run for _, run in labeled_runs]
    label_names = [label.name for label in labels]
    distinct_names = list(dict.fromkeys(label_names))
    _require_several(distinct_names, paths)

    if reference is None:
        default_method = Config().method
        has_default_method = not studies and default_method in distinct_names
        reference = default_method if has_default_method else distinct_names[0]
    _require_reference(reference, distinct_names)

    scores = _comparable_scores(label_names, runs)
    differences, notes = compare(scores, reference=reference, metrics=_metrics(runs, metrics))
    if not differences:
        raise UserError(f"No run shares its dataset and seed with a run of {reference}. {' '.join(notes)}")
    if tested:
        notes.append("The intervals do not allow for early stops of final tests (--final-seeds auto).")
    return differences, [*_label_notes(labels, runs), *_setting_notes(label_names, runs), *notes]


def _tested_runs_of(
    studies: Sequence[Path], others: Sequence[Path]
) -> list[tuple["MethodLabel", FinishedRun]]:
    """Return the final-test runs of studies, and of studies of `prometar reproduce --tune` below `others`.

    Raises:
        UserError: a study in `studies` has no final test, or a file of a run is corrupt.
    """
    names = _folder_names(studies)
    tested: list[tuple[MethodLabel, FinishedRun]] = []
    for study in studies:
        tested += _tested_runs(study, names[study])
    for path in others:
        tested += [(MethodLabel(name), run) for name, run in _tuned_runs(path)]
    return tested


def _labeled_runs_below(paths: Sequence[Path]) -> list[tuple["MethodLabel", FinishedRun]]:
    """Return the runs below folders, except those of studies, with the labels of `label_methods`.

    Raises:
        UserError: a file of a run is corrupt.
    """
    by_folder: dict[Path, FinishedRun] = {}  # a folder may be below several paths, but its run counts once
    for path in paths:
        for run in _read_runs(_results_below(path)):
            by_folder[run.folder] = run
    runs = list(by_folder.values())
    labels = label_methods([run.config for run in runs])
    return list(zip(labels, runs, strict=True))


def _require_several(names: Sequence[str], paths: Sequence[Path]) -> None:
    """Check that there are at least two labels to compare.

    Args:
        names: Names of the labels, without repetitions.
        paths: Folders of the runs, which the message names.

    Raises:
        UserError: there are fewer.
    """
    if len(names) >= 2:
        return
    problem = f"all runs use {names[0]}" if names else "no finished run found"
    listed = ", ".join(map(str, paths))
    raise UserError(f"Nothing to compare in {listed}: {problem}. Pass runs of several methods or settings.")


def _require_reference(reference: str, names: Sequence[str]) -> None:
    """Check the value of `--reference`.

    Raises:
        UserError: `reference` is not in `names`.
    """
    if reference not in names:
        raise UserError(f"--reference must be one of {'; '.join(names)}, got {reference}.")


def _metrics(runs: Sequence[FinishedRun], chosen: Sequence[str]) -> list[str]:
    """Return the metrics in `chosen` or, if it is empty, the metrics of `FinishedRun.scores`.

    Raises:
        UserError: no run has one of the metrics in `chosen`.
    """
    defaults: dict[str, None] = {}  # a set that keeps the order
    known: dict[str, None] = {}
    for run in runs:
        defaults |= dict.fromkeys(run.scores)
        known |= dict.fromkeys(run.all_scores)
    for metric in chosen:
        if metric not in known:
            raise UserError(f"--metric must be one of {', '.join(known)}, got {metric}.")
    if chosen:
        return list(dict.fromkeys(chosen))
    return list(defaults)


def _read_runs(results: Sequence[Path]) -> list[FinishedRun]:
    """Return the runs of result files, except those that were repeated because images have been excluded.

    The repetition of a run is in a folder beside that of the run (docs/data.md). It has the same settings.

    Raises:
        UserError: a file of a run is missing, is corrupt, or has another file format.
    """
    runs: list[FinishedRun] = []
    for path in results:
        folder = path.parent
        runs.append(FinishedRun(folder, load_config(folder / "config.yaml"), read_result(folder)))

    keys = [_repetition_key(run) for run in runs]
    num_runs = Counter(keys)
    kept: list[FinishedRun] = []
    for run, key in zip(runs, keys, strict=True):
        has_repetition = num_runs[key] > 1
        if not has_repetition or _has_current_images(run):
            kept.append(run)
    return kept


def _repetition_key(run: FinishedRun) -> tuple[Path, str, str]:
    """Return a key that is equal for a run and its repetitions: parent folder, objective and settings."""
    return run.folder.parent, run.result.objective, json.dumps(run.config.identity())


def _has_current_images(run: FinishedRun) -> bool:
    """Return True if a run used the images that it would use now.

    If the images are not on this machine, the run cannot be checked. Return True in this case, too.
    """
    from prometar.run_folder import used_same_images  # loads torch

    try:
        return used_same_images(run.result, run.config)
    except UserError:
        return True


def _is_study(path: Path) -> bool:
    return (path / "study.yaml").is_file()


def _results_below(path: Path) -> list[Path]:
    """Return the result files below a folder, except those of studies."""
    # Studies are skipped, because their trials are not comparable runs.
    studies = {file.parent for file in path.rglob("study.yaml")}
    return [file for file in sorted(path.rglob(RESULT_FILE)) if studies.isdisjoint(file.parents)]


def _folder_names(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the names of folders. If folders share a name, return their paths instead."""
    num_folders = Counter(path.name for path in paths)
    names: dict[Path, str] = {}
    for path in paths:
        is_unique = num_folders[path.name] == 1
        names[path] = one_line(path.name if is_unique else str(path))
    return names


def _tested_runs(study: Path, name: str) -> list[tuple["MethodLabel", FinishedRun]]:
    """Return the runs of a study's final test, with their labels.

    Only runs with the selected or the default settings are returned. Runs with other settings, such as the
    settings of an earlier selection, are left out. `_settings_file` says where a study writes its settings.

    Raises:
        UserError: the study has no final test, or a file of a run is corrupt.
    """
    with_selected: list[tuple[MethodLabel, FinishedRun]] = []
    with_default: list[tuple[MethodLabel, FinishedRun]] = []
    for kinds, run in _runs_of_final_test(study):
        # If the default settings were selected, both files are equal: "STUDY selected = default".
        label = MethodLabel(f"{name} {' = '.join(kinds)}")
        group = with_selected if "selected" in kinds else with_default
        group.append((label, run))
    if not with_selected and not with_default:
        raise UserError(f"{study} has no run of a final test. Finish the study, then compare it.")
    # The selected settings come first, because the first label is the default reference.
    return [*with_selected, *with_default]


def _runs_of_final_test(study: Path) -> Iterator[tuple[list[str], FinishedRun]]:
    """Yield the runs of a study's final test, each with the kinds of its settings: "selected" or "default".

    A run has both kinds if the default settings were selected.

    Raises:
        UserError: a file of a run or of settings is corrupt.
    """
    runs = _read_runs(sorted((study / "finals").glob(f"*/{RESULT_FILE}")))
    datasets = {run.config.data.name for run in runs}
    settings_by_dataset = {dataset: _settings_of_study(study, dataset) for dataset in datasets}
    for run in runs:
        dataset = run.config.data.name
        # Most datasets share a file of settings, which contains the name of one dataset and one seed.
        dataset_and_seed = {"data.name": dataset, "train.seed": run.config.train.seed}
        identity = run.config.identity()
        kinds: list[str] = []
        for kind, settings in settings_by_dataset[dataset].items():
            if settings.override(dataset_and_seed).identity() == identity:
                kinds.append(kind)
        if kinds:
            yield kinds, run


def _settings_of_study(study: Path, dataset: str) -> dict[str, Config]:
    """Return the "selected" and the "default" settings of a study on a dataset. Missing files are left out.

    Raises:
        UserError: a file of settings is corrupt.
    """
    settings: dict[str, Config] = {}
    for kind in ("selected", "default"):
        path = _settings_file(study, kind, dataset)
        if path.is_file():
            settings[kind] = load_config(path)
    return settings


def _settings_file(study: Path, kind: str, dataset: str) -> Path:
    """Return the file of a study with its settings on a dataset.

    The file is KIND-DATASET.yaml for a dataset with other published settings, and KIND.yaml otherwise.

    Args:
        kind: "selected" or "default".
    """
    own = study / f"{kind}-{file_name(dataset)}.yaml"
    return own if own.is_file() else study / f"{kind}.yaml"


def _is_reproduction(path: Path) -> bool:
    """Return True for a folder of `prometar reproduce`, with or without `--tune`."""
    return (path / "runs").is_dir() or (path / "studies").is_dir()


def _reproduced_runs(path: Path) -> list[tuple[str, FinishedRun]]:
    """Return the runs of a folder of `prometar reproduce`, each with the name of its method.

    Raises:
        UserError: a file of a run is corrupt.
    """
    reproduced = [(run.config.method, run) for run in _read_runs(_results_below(path))]
    return [*reproduced, *_tuned_runs(path)]


def _tuned_runs(path: Path) -> Iterator[tuple[str, FinishedRun]]:
    """Yield the runs of `prometar reproduce --tune`, named "METHOD selected" and "METHOD published".

    If the published settings were selected, a run has both names.
    """
    titles = {"selected": "selected", "default": "published"}
    studies = [file.parent for file in (path / "studies").glob("*/study.yaml")]
    for study in sorted(studies):
        for kinds, run in _runs_of_final_test(study):
            for kind in kinds:
                yield f"{run.config.method} {titles[kind]}", run


def _share_methods(runs_by_path: Mapping[Path, Sequence[tuple[str, FinishedRun]]]) -> bool:
    """Return True if there are several folders, and all of them contain runs of the same method."""
    if len(runs_by_path) < 2:
        return False
    methods_by_folder = [{method for method, _ in runs} for runs in runs_by_path.values()]
    return bool(set.intersection(*methods_by_folder))


def _compare_folders(
    runs_by_path: Mapping[Path, Sequence[tuple[str, FinishedRun]]],
    reference: str | None,
    metrics: Sequence[str],
) -> tuple[list[Difference], list[str]]:
    """Subtract the results of each method in the reference folder from those in every other folder.

    Raises:
        UserError: as in `compare_runs`.
    """
    names = _folder_names(list(runs_by_path))
    if reference is None:
        reference = next(iter(names.values()))
    _require_reference(reference, list(names.values()))

    runs: list[FinishedRun] = []
    for named_runs in runs_by_path.values():
        runs += [run for _, run in named_runs]
    has_several_shots = len({run.config.data.shots for run in runs}) > 1

    # Labels in the order of `runs`, and the same labels by method and folder.
    labels: list[str] = []
    labels_by_method: dict[str, dict[str, str]] = {}
    for path, named_runs in runs_by_path.items():
        folder = names[path]
        for name, run in named_runs:
            method = f"{name}, {run.config.data.shots} shots" if has_several_shots else name
            label = one_line(f"{method} ({folder})")
            labels.append(label)
            labels_by_method.setdefault(method, {})[folder] = label

    scores = _comparable_scores(labels, runs)
    differences: list[Difference] = []
    notes: list[str] = []
    for method, label_by_folder in labels_by_method.items():
        if reference not in label_by_folder or len(label_by_folder) < 2:
            notes.append(one_line(f"Not paired: {method} is only in {', '.join(label_by_folder)}."))
            continue
        scores_of_method = {label: scores[label] for label in label_by_folder.values()}
        method_differences, method_notes = compare(
            scores_of_method, reference=label_by_folder[reference], metrics=_metrics(runs, metrics)
        )
        differences += method_differences
        notes += method_notes
    if not differences:
        raise UserError(f"No run shares its dataset and seed with a run in {reference}. {' '.join(notes)}")
    differences = correct_for_all(differences)
    return differences, [*_setting_notes(labels, runs), *notes]


@dataclass(frozen=True)
class MethodLabel:
    """Label of a method with certain settings.

    Args:
        name: Name in tables, such as "coop", "coop optim.lr=0.1" or "coop #2".
        settings: The settings that distinguish a numbered label from others of its method, else "".
    """

    name: str
    settings: str = ""


def label_methods(configs: Sequence[Config]) -> list[MethodLabel]:
    """Return a label per configuration: the method, and the settings that vary among its configurations.

    If the settings are too long for a table, the configurations of a method are numbered instead. Labels
    omit the seed and all data settings except `data.shots`, so runs may share a label.

    Example:
        >>> coop, vpt = Config(method="coop"), Config(method="vpt")
        >>> [label.name for label in label_methods([coop, vpt, vpt.override({"optim.lr": 0.1})])]
        ['coop', 'vpt optim.lr=0.0025', 'vpt optim.lr=0.1']
    """
    all_settings = [_labeled_settings(config) for config in configs]
    differing = [_differing_settings(settings, all_settings) for settings in all_settings]
    methods = [config.method for config in configs]
    numbered: set[str] = set()
    for method, text in zip(methods, differing, strict=True):
        if len(f"{method} {text}") > _MAX_LABEL_LENGTH:
            numbered.add(method)

    variants: dict[str, list[str]] = {method: [] for method in numbered}
    labels: list[MethodLabel] = []
    for method, text in zip(methods, differing, strict=True):
        if method not in numbered:
            labels.append(MethodLabel(one_line(f"{method} {text}".strip())))
            continue
        if text not in variants[method]:
            variants[method].append(text)
        number = 1 + variants[method].index(text)
        labels.append(MethodLabel(one_line(f"{method} #{number}"), text))
    return labels


def _labeled_settings(config: Config) -> dict[str, object]:
    """Return the settings that distinguish labels, by dotted key: all but the seed and most data settings."""
    labeled: dict[str, object] = {}
    for key, value in config.flat().items():
        is_omitted = key == "train.seed" or (key.startswith("data.") and key != "data.shots")
        if not is_omitted:
            labeled[key] = value
    return labeled


def _differing_settings(settings: Mapping[str, object], all_settings: Sequence[Mapping[str, object]]) -> str:
    """Return the settings, as text, that differ from other configurations of the same method."""
    same_method = [other for other in all_settings if other["method"] == settings["method"]]
    differing: list[str] = []
    for key, value in settings.items():
        if any(other.get(key) != value for other in same_method):
            differing.append(f"{key}={value}")
    return " ".join(differing)


def _label_notes(labels: Sequence[MethodLabel], runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield a note per numbered label, with its settings and the folder of its first run."""
    first_runs: dict[MethodLabel, FinishedRun] = {}
    for label, run in zip(labels, runs, strict=True):
        first_runs.setdefault(label, run)
    for label, run in first_runs.items():
        if label.settings:
            yield one_line(f"{label.name} (first run: {run.folder}): {label.settings}")


def _comparable_scores(labels: Sequence[str], runs: Sequence[FinishedRun]) -> Results:
    """Return the scores by label, dataset, metric and seed.

    Raises:
        UserError: runs are not comparable, or trained runs with the same label share dataset and seed.
    """
    _require_comparable(runs)
    first_runs: dict[tuple[str, str, int], FinishedRun] = {}
    scores: dict[str, dict[str, dict[str, dict[int, float]]]] = {label: {} for label in labels}
    for label, run in zip(labels, runs, strict=True):
        first_run = first_runs.setdefault((label, run.dataset, run.seed), run)
        # An untrained run may be repeated, because its seed has no effect.
        if first_run is not run and run.seed != EVERY_SEED:
            raise UserError(f"{label}: {first_run.folder} and {run.folder} share dataset and seed. Pass one.")
        by_metric = scores[label].setdefault(run.dataset, {})
        for metric, score in run.all_scores.items():
            by_metric.setdefault(metric, {})[run.seed] = score
    return scores


def _require_comparable(runs: Sequence[FinishedRun]) -> None:
    """Check that runs were evaluated in the same way.

    Raises:
        UserError: two runs differ in an aspect in which they must agree.
    """
    first_values: dict[tuple[str, str], tuple[FinishedRun, object]] = {}
    for run in runs:
        for aspect, scope, value in _comparability(run):
            first_run, expected = first_values.setdefault((aspect, scope), (run, value))
            if value != expected:
                raise UserError(
                    f"{first_run.folder} and {run.folder} differ in {aspect}. Pass comparable runs."
                )


def _comparability(run: FinishedRun) -> Iterator[tuple[str, str, object]]:
    """Yield the aspects in which a run must agree with others, each as (aspect, scope, value).

    Runs with the same scope, such as the same dataset, must have the same value of an aspect.
    """
    result = run.result
    yield "objectives", "", result.objective
    yield "images or classes", run.dataset, (result.data_digest, result.classnames)
    yield "weights", str(run.config.backbone), result.weights_digest
    yield "numbers of test images", run.dataset, tuple(sorted(result.images.items()))
    # Results of version 0.2 have no such digests. That version could not exclude images.
    for name, digest in result.evaluation_digests.items():
        yield "test images", f"{run.dataset} {name}", digest


def _setting_notes(labels: Sequence[str], runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield a note on results that are not compared, and on each setting that differs between labels.

    Only settings in `_NOTED_SETTINGS` are noted. The last run of a label represents the label, so differences
    between runs with the same label are not noted.
    """
    if any(run.result.tests for run in runs):
        yield "Accuracies on other datasets are not compared. See pairs.csv of `prometar reproduce`."
    for key in _NOTED_SETTINGS:
        values = {label: run.config.flat()[key] for label, run in zip(labels, runs, strict=True)}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{label} {value}" for label, value in values.items())
            yield one_line(f"Different {key}: {listed}.")
