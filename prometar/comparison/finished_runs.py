"""Comparison of finished runs in folders."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from prometar.comparison.paired import EVERY_SEED, Difference, Results, compare
from prometar.config.settings import Config, load_config
from prometar.data.datasets.benchmarks import BENCHMARKS
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
"""Maximum length of a label that lists settings. Longer ones are replaced with a number."""


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
        """Name of the dataset. For the user's images and custom loaders, it includes root and arguments."""
        data = self.config.data
        if data.name in BENCHMARKS or data.name in RENDERED:
            return data.name
        arguments = (f"{key}={value}" for key, value in sorted(data.args.items()))
        return one_line(" ".join(filter(None, (data.name, data.root, *arguments))))

    @property
    def scores(self) -> dict[str, float]:
        """Scores in percent by metric: base, new and H, or accuracy."""
        scores = {one_line(name): value for name, value in self.result.accuracies.items()}
        if {"base", "new"} <= scores.keys():
            return {**scores, HARMONIC: harmonic_mean({name: scores[name] for name in ("base", "new")})}
        return {ACCURACY if name == "all" else name: value for name, value in scores.items()}


def compare_runs(
    paths: Sequence[Path], *, reference: str | None = None
) -> tuple[list[Difference], list[str]]:
    """Compare finished runs with those of a reference method. Return differences and notes for the user.

    Args:
        paths: Folders of runs, or folders that contain such folders.
        reference: Name of the reference (`label_methods`). Default: prometar or, if absent, the first one.

    Raises:
        UserError: the reference is unknown, a file of a run is corrupt, or the runs cannot be compared.
    """
    folders = dict.fromkeys(resolve_path(file.parent) for path in paths for file in _results_below(path))
    runs = [FinishedRun(each, load_config(each / "config.yaml"), read_result(each)) for each in folders]
    labels = label_methods([run.config for run in runs])
    names = [label.name for label in labels]
    methods = list(dict.fromkeys(names))
    if len(methods) < 2:
        found = f"all runs use {methods[0]}" if methods else "no finished run found"
        listed = ", ".join(map(str, paths))
        raise UserError(f"Nothing to compare in {listed}: {found}. Pass runs of several methods or settings.")
    if reference is None:
        default = Config().method
        reference = default if default in methods else methods[0]
    if reference not in methods:
        raise UserError(f"--reference must be one of {'; '.join(methods)}, got {reference}.")
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.scores))
    differences, notes = compare(_comparable_scores(names, runs), reference=reference, metrics=metrics)
    if not differences:
        raise UserError(f"No run shares its dataset and seed with a run of {reference}. {' '.join(notes)}")
    return differences, [*_label_notes(labels, runs), *_setting_notes(names, runs), *notes]


def _results_below(path: Path) -> list[Path]:
    studies = {file.parent for file in path.rglob("study.yaml")}  # skipped: a study has its own report
    return [file for file in sorted(path.rglob(RESULT_FILE)) if studies.isdisjoint(file.parents)]


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
    methods = [str(settings["method"]) for settings in all_settings]
    numbered = {
        method
        for method, text in zip(methods, differing, strict=True)
        if len(f"{method} {text}") > _MAX_LABEL_LENGTH
    }
    variants: dict[str, list[str]] = {method: [] for method in numbered}
    labels = []
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
    """Return the settings that distinguish labels, by dotted key."""
    return {
        key: value
        for key, value in config.flat().items()
        if key == "data.shots" or (not key.startswith("data.") and key != "train.seed")
    }


def _differing_settings(settings: Mapping[str, object], all_settings: Sequence[Mapping[str, object]]) -> str:
    """Return the settings, as text, that differ from other configurations of the same method."""
    same_method = [other for other in all_settings if other["method"] == settings["method"]]
    differing = [key for key in settings if any(other.get(key) != settings[key] for other in same_method)]
    return " ".join(f"{key}={settings[key]}" for key in differing)


def _label_notes(labels: Sequence[MethodLabel], runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield a note per numbered label, with its settings and the folder of its first run."""
    first_runs: dict[MethodLabel, FinishedRun] = {}
    for label, run in zip(labels, runs, strict=True):
        first_runs.setdefault(label, run)
    for label, run in first_runs.items():
        if label.settings:
            yield one_line(f"{label.name} (first run: {run.folder}): {label.settings}")


def _comparable_scores(labels: Sequence[str], runs: Sequence[FinishedRun]) -> Results:
    """Return the scores by label, dataset, metric and seed. Raise a UserError for incomparable runs."""
    first_values: dict[tuple[str, str], tuple[FinishedRun, object]] = {}
    first_runs: dict[tuple[str, str, int], FinishedRun] = {}
    scores: dict[str, dict[str, dict[str, dict[int, float]]]] = {label: {} for label in labels}
    for label, run in zip(labels, runs, strict=True):
        for aspect, scope, value in (  # runs with the same scope must have the same value
            ("objectives", "", run.result.objective),
            ("images or classes", run.dataset, (run.result.data_digest, run.result.classnames)),
            ("weights", str(run.config.backbone), run.result.weights_digest),
        ):
            first, expected = first_values.setdefault((aspect, scope), (run, value))
            if value != expected:
                raise UserError(f"{first.folder} and {run.folder} differ in {aspect}. Pass comparable runs.")
        first = first_runs.setdefault((label, run.dataset, run.seed), run)
        if first is not run and run.seed != EVERY_SEED:  # untrained runs may repeat: seeds have no effect
            raise UserError(f"{label}: {first.folder} and {run.folder} share dataset and seed. Pass one.")
        for metric, score in run.scores.items():
            scores[label].setdefault(run.dataset, {}).setdefault(metric, {})[run.seed] = score
    return scores


def _setting_notes(labels: Sequence[str], runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield a note per setting of `_NOTED_SETTINGS` that differs between methods, and on ignored results."""
    if any(run.result.tests for run in runs):
        yield "Accuracies on other datasets are not compared. See pairs.csv of `prometar reproduce`."
    for key in _NOTED_SETTINGS:
        values = {label: run.config.flat()[key] for label, run in zip(labels, runs, strict=True)}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{label} {value}" for label, value in values.items())
            yield one_line(f"Different {key}: {listed}.")
