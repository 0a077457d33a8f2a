"""Comparison of finished runs in folders."""

from collections.abc import Iterator, Sequence
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

_NOTED_SETTINGS = ("data.shots", "train.epochs", "train.batch_size", "backbone.name", "backbone.pretrained",
                   "backbone.precision")  # fmt: skip
"""Settings that cause a note if they differ between methods."""


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
        reference: Label of the reference (`method_labels`). Default: prometar or, if absent, the first one.

    Raises:
        UserError: the reference is unknown, a file of a run is corrupt, or the runs cannot be compared.
    """
    folders = dict.fromkeys(resolve_path(file.parent) for path in paths for file in _results_below(path))
    runs = [FinishedRun(each, load_config(each / "config.yaml"), read_result(each)) for each in folders]
    labels = method_labels([run.config for run in runs])
    methods = list(dict.fromkeys(labels))
    if len(methods) < 2:
        listed = ", ".join(map(str, paths))
        found = f"all runs use {methods[0]}" if methods else "no finished run found"
        raise UserError(f"Nothing to compare in {listed}: {found}. Pass runs of several methods or settings.")
    reference = reference or (Config().method if Config().method in methods else methods[0])
    if reference not in methods:
        raise UserError(f"--reference must be one of {'; '.join(methods)}, got {reference}.")
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.scores))
    differences, notes = compare(_comparable_scores(labels, runs), reference=reference, metrics=metrics)
    if not differences:
        raise UserError(f"No run shares its dataset and seed with a run of {reference}. {' '.join(notes)}")
    return differences, [*_setting_notes(labels, runs), *notes]


def _results_below(path: Path) -> list[Path]:
    studies = {file.parent for file in path.rglob("study.yaml")}  # skipped: a study has its own report
    return [file for file in sorted(path.rglob(RESULT_FILE)) if studies.isdisjoint(file.parents)]


def method_labels(configs: Sequence[Config]) -> list[str]:
    """Return a label per configuration: the method, and the settings that vary among its configurations.

    Labels omit the seed and all data settings except `data.shots`, so runs may share a label.

    Example:
        >>> coop, vpt = Config(method="coop"), Config(method="vpt")
        >>> method_labels([coop, vpt, vpt.override({"optim.lr": 0.1})])
        ['coop', 'vpt optim.lr=0.0025', 'vpt optim.lr=0.1']
    """
    settings = [
        {
            key: value
            for key, value in config.flat().items()
            if key == "data.shots" or (not key.startswith("data.") and key != "train.seed")
        }
        for config in configs
    ]
    labels = []
    for flat in settings:
        same_method = [other for other in settings if other["method"] == flat["method"]]
        differing = [key for key in flat if any(other.get(key) != flat[key] for other in same_method)]
        labels.append(one_line(" ".join([str(flat["method"]), *(f"{key}={flat[key]}" for key in differing)])))
    return labels


def _comparable_scores(labels: Sequence[str], runs: Sequence[FinishedRun]) -> Results:
    """Return the scores by label, dataset, metric and seed. Raise a UserError for incomparable runs."""
    first_values = dict[tuple[str, str], tuple[FinishedRun, object]]()
    first_runs = dict[tuple[str, str, int], FinishedRun]()
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
