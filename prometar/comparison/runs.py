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

_SHARED = ("data.shots", "train.epochs", "train.batch_size", "backbone.name", "backbone.pretrained",
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
        """Seed of the run, or EVERY_SEED if it trained nothing."""
        return self.config.train.seed if "direct_ce" in self.result.last_epoch else EVERY_SEED

    @property
    def dataset(self) -> str:
        """Name of the dataset. For custom datasets, the name includes the data root and the arguments."""
        data = self.config.data
        if data.name in BENCHMARKS or data.name in RENDERED:
            return data.name
        arguments = (f"{key}={value}" for key, value in sorted(data.args.items()))
        return one_line(" ".join(filter(None, (data.name, data.root, *arguments))))

    @property
    def scores(self) -> dict[str, float]:
        """Scores in percent by metric: base, new and H, or accuracy."""
        scores = dict(self.result.accuracies)
        if {"base", "new"} <= scores.keys():
            return {**scores, HARMONIC: harmonic_mean({name: scores[name] for name in ("base", "new")})}
        return {ACCURACY if name == "all" else name: value for name, value in scores.items()}


def compare_runs(paths: Sequence[Path], *, to: str | None = None) -> tuple[list[Difference], list[str]]:
    """Compare finished runs with those of a reference method. Return the differences and notes.

    Args:
        paths: Folders of runs, or folders that contain them.
        to: Label of the reference. Default: the default method if present, otherwise the first method.

    Raises:
        UserError: there is nothing to compare, a record is corrupt, or runs are not comparable.
    """
    folders = dict.fromkeys(resolve_path(file.parent) for path in paths for file in _results_below(path))
    runs = [
        FinishedRun(folder, load_config(folder / "config.yaml"), read_result(folder)) for folder in folders
    ]
    names = labels([run.config for run in runs])
    methods = list(dict.fromkeys(names))
    if len(methods) < 2:
        found = f"all runs are of {methods[0]}" if methods else "no finished run found"
        raise UserError(
            f"Nothing to compare in {', '.join(map(str, paths))}: {found}. Pass runs of two methods."
        )
    reference = to or (Config().method if Config().method in methods else methods[0])
    if reference not in methods:
        raise UserError(f"--to must be one of {'; '.join(methods)}, got {reference}.")
    metrics = list(dict.fromkeys(metric for run in runs for metric in run.scores))
    differences, notes = compare(_collect(names, runs), reference=reference, metrics=metrics)
    if not differences:
        raise UserError(f"No run shares dataset and seed with a run of {reference}. {' '.join(notes)}")
    return differences, [*_differing(names, runs), *notes]


def _results_below(path: Path) -> list[Path]:
    studies = {file.parent for file in path.rglob("study.yaml")}  # trials of studies are skipped
    return [file for file in sorted(path.rglob(RESULT_FILE)) if studies.isdisjoint(file.parents)]


def labels(configs: Sequence[Config]) -> list[str]:
    """Return a label per configuration. Labels are equal if only the images or the seed differ.

    A label is the method, followed by the settings in which configurations of the method differ.

    Example:
        >>> coop, vpt = Config(method="coop"), Config(method="vpt")
        >>> labels([coop, vpt, vpt.override({"optim.lr": 0.1})])
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
    found = []
    for flat in settings:
        others = [other for other in settings if other["method"] == flat["method"]]
        differing = [key for key in flat if any(other.get(key) != flat[key] for other in others)]
        found.append(one_line(" ".join([str(flat["method"]), *(f"{key}={flat[key]}" for key in differing)])))
    return found


def _collect(names: Sequence[str], runs: Sequence[FinishedRun]) -> Results:
    """Return the scores by label, dataset, metric and seed. Raise a UserError for incomparable runs."""
    first = dict[tuple[str, object], tuple[FinishedRun, object]]()
    scores: dict[str, dict[str, dict[str, dict[int, float]]]] = {name: {} for name in names}
    for name, run in zip(names, runs, strict=True):
        result = run.result
        for what, key, value in (
            ("objectives", "", result.objective),
            ("images or classes", run.dataset, (result.data_digest, result.classnames)),
            ("weights", str(run.config.backbone), result.weights_digest),
        ):
            other, expected = first.setdefault((what, key), (run, value))
            if value != expected:
                raise UserError(f"{other.folder} and {run.folder} have different {what}. Pass one of them.")
        other, _ = first.setdefault((name, (run.dataset, run.seed)), (run, None))
        if other is not run and run.seed != EVERY_SEED:
            raise UserError(f"{other.folder} and {run.folder} are the same run of {name}. Pass one of them.")
        for metric, percent in run.scores.items():
            scores[name].setdefault(run.dataset, {}).setdefault(metric, {})[run.seed] = percent
    return scores


def _differing(names: Sequence[str], runs: Sequence[FinishedRun]) -> Iterator[str]:
    """Yield a note per setting of `_SHARED` that differs between methods."""
    for key in _SHARED:
        values = {name: run.config.flat()[key] for name, run in zip(names, runs, strict=True)}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            yield one_line(f"Different {key}: {listed}.")
