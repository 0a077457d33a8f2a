"""Benchmark protocols, their grids of jobs for `prometar reproduce`, and the finished runs of these jobs."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

from prometar.cli.console import format_count
from prometar.comparison.finished_runs import FinishedRun
from prometar.config.recipes import Protocol
from prometar.config.settings import Config, describe_differences, load_config, texts_path
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import FINAL
from prometar.errors import PrometarError, UserError
from prometar.io.files import file_size
from prometar.metrics import ACCURACY, HARMONIC
from prometar.run_folder import has_other_images
from prometar.training.run_result import read_result
from tune.execution.job import Job

_MAIN_BENCHMARKS = tuple(name for name, benchmark in BENCHMARKS.items() if not benchmark.imagenet_variant)
_MAIN_WITHOUT_IMAGENET = tuple(name for name in _MAIN_BENCHMARKS if name != "imagenet")
_IMAGENET_VARIANTS = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.imagenet_variant)


@dataclass(frozen=True)
class BenchmarkProtocol:
    """Benchmark protocol: the datasets, objective and shots of its runs.

    Args:
        objective: Objective of all runs (`prometar.data.splits.objective`).
        datasets: Datasets to train and test on. If `source` is given, they are used only for testing.
        source: Dataset that all runs train on. None: train on each of `datasets` separately.
        shots: Training images per class. If there are several numbers, the table has a column for each.
    """

    name: Protocol
    objective: str
    datasets: tuple[str, ...]
    source: str | None = None
    shots: tuple[int, ...] = (16,)

    @property
    def accepts_several_shots(self) -> bool:
        return len(self.shots) > 1


@dataclass(frozen=True)
class Grid:
    """Grid of runs under a protocol: each method with each dataset, number of shots and seed.

    Args:
        datasets, source, shots: As in the protocol, unless the user chose others.
        configs: Configuration by method, training dataset and shots, complete except for the seed.
        seeds: Seeds of the few-shot split, the prompts and the order of the images.
    """

    protocol: BenchmarkProtocol
    datasets: tuple[str, ...]
    source: str | None
    shots: tuple[int, ...]
    configs: Mapping[tuple[str, str, int], Config]
    seeds: tuple[int, ...]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(method for method, _, _ in self.configs))

    @property
    def shots_are_columns(self) -> bool:
        return self.protocol.accepts_several_shots

    @property
    def training_datasets(self) -> tuple[str, ...]:
        return (self.source,) if self.source else self.datasets

    @property
    def all_datasets(self) -> tuple[str, ...]:
        """Datasets to train or test on, in the order of the table."""
        return tuple(dict.fromkeys((*self.training_datasets, *self.datasets)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the table's columns that contain accuracies."""
        if self.shots_are_columns:
            return tuple(map(shots_column, self.shots))
        return ("base", "new", HARMONIC) if self.protocol.objective == FINAL else (ACCURACY,)

    @property
    def title(self) -> str:
        backbone = " ".join(filter(None, (self.config.backbone.name, self.config.backbone.pretrained)))
        shots = "" if self.shots_are_columns else f"{shots_column(self.shots[0])}, "
        source = f"trained on {self.source}, " if self.source else ""
        noun = "seeds" if len(self.seeds) > 1 else "seed"
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.protocol.name}: test accuracy (%), {source}{shots}{backbone}, {noun} {seeds}"

    @property
    def config(self) -> Config:
        """Configuration of the first runs. All runs share backbone and data root."""
        return next(iter(self.configs.values()))

    def jobs(self, folder: Path, untrained: Collection[str], unavailable: Collection[str] = ()) -> list[Job]:
        """Return one job per run, ordered by dataset.

        If a folder holds a result on other images (excluded.txt changed since), the run goes to FOLDER-2,
        FOLDER-3, ... The older result is kept, and used again if excluded.txt is changed back.

        Args:
            folder: Parent of the runs' folders. Protocols that need the same run share its folder.
            untrained: Methods without training. One run per dataset stands for all shots and seeds.
            unavailable: Datasets that cannot be opened. They are left out.
        """
        targets: tuple[str, ...] = ()
        if self.source:
            targets = tuple(name for name in self.datasets if name not in unavailable)
        first_shots_and_seed = self.shots[0], self.seeds[0]
        objective = self.protocol.objective
        jobs: list[Job] = []
        for dataset, shots, method, seed in product(
            self.training_datasets, self.shots, self.methods, self.seeds
        ):
            if dataset in unavailable or (method in untrained and (shots, seed) != first_shots_and_seed):
                continue
            config = self.configs[method, dataset, shots].override({"train.seed": seed})
            path = folder / f"{objective}-{file_name(dataset)}-{shots}shots-{method}-seed{seed}"
            name = f"{dataset}, {method}, {shots_column(shots)}, seed {seed}"
            jobs.append(Job(name, {_run_folder(path, config): config}, objective, targets=targets))
        return jobs


def _run_folder(folder: Path, config: Config) -> Path:
    """Return the first of FOLDER, FOLDER-2, ... without a result of these settings with other images."""
    for number in count(1):
        numbered = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        # Stop at a folder with other settings too: `read_run` then reports the difference, instead of
        # silently starting a second run.
        if _changed_settings(numbered, config) or not has_other_images(numbered, config):
            break
    return numbered


def _changed_settings(folder: Path, config: Config) -> str:
    """Return how the settings of the run in a folder differ from `config`.

    The text is "" if they do not differ or the folder has no run.
    """
    if file_size(folder / "config.yaml") is None:
        return ""
    return describe_differences(load_config(folder / "config.yaml").identity(), config.identity())


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        BenchmarkProtocol("base-to-new", FINAL, _MAIN_BENCHMARKS),
        BenchmarkProtocol("cross-dataset", "all_classes", _MAIN_WITHOUT_IMAGENET, source="imagenet"),
        BenchmarkProtocol("domain-generalisation", "all_classes", _IMAGENET_VARIANTS, source="imagenet"),
        BenchmarkProtocol("few-shot", "all_classes", _MAIN_BENCHMARKS, shots=(1, 2, 4, 8, 16)),
    )
}


def shots_column(shots: int) -> str:
    """Return the column name for a number of shots.

    Example:
        >>> shots_column(1), shots_column(16)
        ('1 shot', '16 shots')
    """
    return format_count(shots, "shot")


def read_run(job: Job, digests: Mapping[str, str]) -> FinishedRun | None:
    """Return the finished run of a job, or None if its files are missing or the result is corrupt.

    Raises:
        UserError: the run has other settings, or used other images, weights, texts or code than those of
            `digests`.
    """
    folder = job.folder
    config = job.config
    if file_size(folder / "config.yaml") is None:
        return None
    changed = _changed_settings(folder, config)
    if changed:
        raise UserError(f"{folder} has other settings ({changed}). Pass the same settings or another --out.")
    try:
        result = read_result(folder)
    except PrometarError:
        return None
    used = {config.data.name: result.data_digest, "weights": result.weights_digest}
    for name, (_, digest) in result.tests.items():
        used[name] = digest
    for name, digest in result.code.items():
        used[f"code of {name}"] = digest
    if result.texts:
        used[f"texts of {texts_path(config)}"] = result.texts
    for name, digest in used.items():
        if name in digests and digests[name] != digest:
            raise UserError(f"{folder} used another version of {name}. Restore it or change --out.")
    return FinishedRun(folder, config, result)
