"""Protocols of the field, the jobs that a request needs, and their results in their folders."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from prometar.comparison.runs import FinishedRun
from prometar.config.settings import Config, differences, load_config
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.data.datasets.catalog import file_name
from prometar.data.splits.objective import FINAL
from prometar.errors import PrometarError, UserError
from prometar.io.files import size_of
from prometar.metrics import ACCURACY, HARMONIC
from prometar.training.run_result import read_result
from tune.execution.jobs import Job

ELEVEN = tuple(name for name, row in BENCHMARKS.items() if not row.variant)
VARIANTS = tuple(name for name, row in BENCHMARKS.items() if row.variant)


@dataclass(frozen=True)
class Grid:
    """Request of `prometar reproduce`, or with the defaults of a protocol.

    Args:
        name: Of the protocol.
        objective: What a run trains and tests on (`prometar.data.splits.objective`).
        datasets: Datasets to train on. With a source, they are tested on only.
        source: Dataset that all runs train on; None: each dataset is trained on by itself.
        shots: Training images per class. A protocol with several has one column for each.
        configs: One configuration per method, complete except for dataset, shots and seed.
        seeds: Seeds of the few-shot split, the prompts and the order of the images.
    """

    name: str
    objective: str
    datasets: tuple[str, ...]
    source: str | None = None
    shots: tuple[int, ...] = (16,)
    configs: Mapping[str, Config] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    @property
    def shots_are_columns(self) -> bool:
        return len(PROTOCOLS[self.name].shots) > 1

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Datasets that runs train on."""
        return (self.source,) if self.source else self.datasets

    @property
    def all_datasets(self) -> tuple[str, ...]:
        """Datasets in the order of the table."""
        return tuple(dict.fromkeys((*self.trained_on, *self.datasets)))

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table."""
        if self.shots_are_columns:
            return tuple(map(shots_column, self.shots))
        return ("base", "new", HARMONIC) if self.objective == FINAL else (ACCURACY,)

    @property
    def title(self) -> str:
        """Title of the table."""
        backbone = " ".join(filter(None, (self.config.backbone.name, self.config.backbone.pretrained)))
        shots = "" if self.shots_are_columns else f"{shots_column(self.shots[0])}, "
        source = f"trained on {self.source}, " if self.source else ""
        seeds = ", ".join(map(str, self.seeds))
        return f"{self.name}: {source}{shots}{backbone}, seeds {seeds}, test accuracy in percent"

    @property
    def config(self) -> Config:
        """Configuration of the first method. All methods share backbone and data."""
        return next(iter(self.configs.values()))

    def jobs(self, folder: Path, untrained: Collection[str], missing: Collection[str] = ()) -> list[Job]:
        """Return the jobs of one run each, dataset by dataset.

        Args:
            folder: Folder of the runs. Equal runs of several protocols share one folder in it.
            untrained: Methods that train nothing. They run once.
            missing: Datasets that cannot be opened.
        """
        targets = tuple(name for name in self.datasets if name not in missing) if self.source else ()
        once, jobs = (self.shots[0], self.seeds[0]), list[Job]()
        grid = product(self.trained_on, self.shots, self.configs.items(), self.seeds)
        for dataset, shots, (method, config), seed in grid:
            if dataset in missing or (method in untrained and (shots, seed) != once):
                continue
            one = config.override({"data.name": dataset, "data.shots": shots, "train.seed": seed})
            name = f"{self.objective}-{file_name(dataset)}-{shots}shots-{method}-seed{seed}"
            title = f"{dataset}, {method}, {shots_column(shots)}, seed {seed}"
            jobs.append(Job(title, {folder / name: one.completed()}, self.objective, targets=targets))
        return jobs


PROTOCOLS = {
    grid.name: grid
    for grid in (
        Grid("base-to-new", FINAL, ELEVEN),
        Grid("cross-dataset", "all_classes", tuple(n for n in ELEVEN if n != "imagenet"), "imagenet"),
        Grid("domain-generalisation", "all_classes", VARIANTS, "imagenet"),
        Grid("few-shot", "all_classes", ELEVEN, shots=(1, 2, 4, 8, 16)),
    )
}
"""Protocols of the field, without methods."""


def shots_column(shots: int) -> str:
    """Return the column of a number of shots.

    Example:
        >>> shots_column(1), shots_column(16)
        ('1 shot', '16 shots')
    """
    return f"{shots} shot{'s' * (shots != 1)}"


def read_run(job: Job, digests: Mapping[str, str]) -> FinishedRun | None:
    """Return the result of a job, or None if it is missing or corrupt: then the job is run again.

    Args:
        digests: Digests of the splits, by dataset.

    Raises:
        UserError: the run in the job's folder has other settings, or was tested on another split.
    """
    folder, config = job.folder, job.config
    if size_of(folder / "config.yaml") is None:
        return None
    if changed := differences(load_config(folder / "config.yaml").flat(), config.flat()):
        raise UserError(f"{folder} has other settings ({changed}). Repeat them, or pass another --out.")
    try:
        result = read_result(folder)
    except PrometarError:
        return None
    splits = {config.data.name: result.data, **{name: digest for name, (_, digest) in result.tests.items()}}
    for name, digest in splits.items():
        if digests.get(name, digest) != digest:
            raise UserError(f"{folder} has another split of {name}. Restore it, or pass another --out.")
    return FinishedRun(folder, config, result)
