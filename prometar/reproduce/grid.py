"""A grid: what is requested, the runs that it needs, and their results in their folders."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from prometar.config.settings import Config, absolute_paths, differences, load_config
from prometar.data.datasets.catalog import file_name, require_name
from prometar.errors import UserError
from prometar.io.files import read_bytes, size_of, write_atomically
from prometar.reproduce.protocols import Protocol, shots_column
from prometar.training.run_result import STRICT, Percent, RunResult, read_result


@dataclass(frozen=True)
class Grid:
    """Request of `prometar reproduce`.

    Args:
        datasets: Datasets to train on. With a source, they are tested on only.
        configs: One configuration per method, complete except for dataset, shots and seed.
        seeds: Seeds of the few-shot split, the prompts and the order of the images.
        shots: Training images per class.
        source: Dataset that all runs train on, if the protocol has one.
        compared_to: Reference of the paired comparison; None: prometar, or else the first method.
    Raises:
        UserError: unknown name, or options that exclude each other.
    """

    protocol: Protocol
    datasets: tuple[str, ...]
    configs: Mapping[str, Config]
    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    source: str | None = None
    compared_to: str | None = None

    def __post_init__(self) -> None:
        if self.compared_to is not None and self.compared_to not in self.configs:
            raise UserError(f"--compare-to must be one of {', '.join(self.configs)}, got {self.compared_to}.")
        if (self.source is None) != (self.protocol.source is None):
            raise UserError(f"--source does not apply to the protocol {self.protocol.name}.")
        if len(self.shots) > 1 and not self.protocol.by_shots:
            raise UserError(f"{self.protocol.name} takes one number of --shots, got {len(self.shots)}.")
        for name in self.all_datasets:
            require_name(name)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """Datasets that runs train on."""
        return (self.source,) if self.source else self.datasets

    @property
    def all_datasets(self) -> tuple[str, ...]:
        """Datasets in the order of the table."""
        return (self.source, *self.datasets) if self.source else self.datasets

    @property
    def config(self) -> Config:
        """Configuration of the first method. All methods share backbone and data."""
        return next(iter(self.configs.values()))

    def runs(self, untrained: Collection[str], missing: Collection[str] = ()) -> list["GridRun"]:
        """Return the runs, dataset by dataset.

        Args:
            untrained: Methods that train nothing. They run once.
            missing: Datasets that cannot be opened.
        """
        targets = tuple(name for name in self.datasets if name not in missing) if self.source else ()
        return [
            GridRun(
                config.override({"data.name": dataset, "data.shots": shots, "train.seed": seed}).completed(),
                self.protocol.objective,
                targets,
                method not in untrained,
            )
            for dataset in self.trained_on
            if dataset not in missing
            for shots in self.shots
            for method, config in self.configs.items()
            for seed in self.seeds
            if method not in untrained or (shots, seed) == (self.shots[0], self.seeds[0])
        ]


@dataclass(frozen=True)
class GridRun:
    """One run of a grid.

    Args:
        objective: What it trains and tests on.
        targets: Datasets that its prompts are also tested on.
        trains: False if the method trains nothing. Its result holds for every seed and number of shots.
    """

    config: Config
    objective: str
    targets: tuple[str, ...] = ()
    trains: bool = True

    @property
    def name(self) -> str:
        """Name of the folder. Equal runs of several protocols share one."""
        data, train = self.config.data, self.config.train
        return (
            f"{self.objective}-{file_name(data.name)}-{data.shots}shots-{self.config.method}-seed{train.seed}"
        )

    @property
    def title(self) -> str:
        """Name in messages."""
        data, train = self.config.data, self.config.train
        return f"{data.name}, {self.config.method}, {shots_column(data.shots)}, seed {train.seed}"


class TargetTest(BaseModel):
    """Test on a target.

    Args:
        accuracy: Percent.
        data: Digest of the dataset's splits.
    """

    model_config = STRICT

    accuracy: Percent
    data: str


_TESTS = TypeAdapter(dict[str, TargetTest])
_TESTS_FILE = "tests.json"


@dataclass(frozen=True)
class GridResult:
    """Result of a run, as far as there is one.

    Args:
        tests: Tests by target.
        reason: Why the run failed; empty otherwise.
    """

    run: GridRun
    result: RunResult | None = None
    tests: Mapping[str, TargetTest] = field(default_factory=dict)
    reason: str = ""

    @property
    def finished(self) -> bool:
        """True if the run and all its targets are tested."""
        return self.result is not None and set(self.run.targets) <= set(self.tests)

    @property
    def accuracies(self) -> dict[str, float]:
        """Percent by set of classes: base and new, or all."""
        return self.result.accuracies if self.result else {}


def read_grid_result(run: GridRun, folder: Path, *, reason: str = "") -> GridResult:
    """Read a run's folder. A corrupt file counts as missing, since the run writes it again."""
    try:
        result = read_result(folder)
    except UserError:
        return GridResult(run, reason=reason)
    return GridResult(run, result, read_tests(folder), reason)


def read_tests(folder: Path) -> dict[str, TargetTest]:
    """Read the tests on targets. A missing or corrupt file counts as none."""
    try:
        return _TESTS.validate_json(read_bytes(folder / _TESTS_FILE))
    except (OSError, ValidationError):
        return {}


def write_tests(folder: Path, tests: Mapping[str, TargetTest]) -> None:
    """Replace the tests on targets."""
    content = {name: test.model_dump() for name, test in tests.items()}
    write_atomically(folder / _TESTS_FILE, json.dumps(content, indent=1).encode())


def require_same(results: Sequence[GridResult], runs: Path, digests: Mapping[str, str]) -> None:
    """Reject runs that were made with other settings or other splits.

    Args:
        runs: Folder of the runs.
        digests: Digests of the splits, by dataset.
    Raises:
        UserError: names the difference.
    """
    for found in results:
        folder, config = runs / found.run.name, found.run.config
        if size_of(folder / "config.yaml") is not None:
            made = absolute_paths(load_config(folder / "config.yaml"))
            if changed := differences(made.flat(), config.flat()):
                raise UserError(
                    f"{folder} has other settings ({changed}). Repeat them, or pass another --out."
                )
        splits = {name: test.data for name, test in found.tests.items()}
        if found.result:
            splits[config.data.name] = found.result.data
        if other := [name for name, digest in splits.items() if digests.get(name, digest) != digest]:
            raise UserError(f"{folder} has another split of {other[0]}. Restore it, or pass another --out.")
