"""The grid of runs that a protocol asks for: each as a worker gets it, and its record in its own folder."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError, with_config

from prometar.config.settings import Config, absolute_paths, differences, load_config, parse
from prometar.data.datasets.catalog import file_name, require_name
from prometar.environment import environment
from prometar.errors import UserError, one_line
from prometar.io.files import read_bytes, resolved, size_of, write_atomically
from prometar.reproduce.protocols import Protocol, shots_column
from prometar.training.run_result import STRICT, Percent

WEIGHTS = "the weights"
"""Among `Outcome.contents`; no data set has a name with a space."""


@dataclass(frozen=True)
class Asked:
    """What a `reproduce` command asks for.

    Args:
        protocol: How methods are compared.
        datasets: Those trained on, or, where there is a source, those tested on.
        configs: A configuration a method, complete but for data set, shots and seed.
        seeds: Of the few-shot draw, the prompts and the order of the images.
        shots: Training images a class.
        source: The data set that all runs train on, if the protocol has one.
        compared_to: The method that the others are paired with; None: prometar, or else the first.
        recipes: What methods of the user's own are by their files, where the command may change settings.
    Raises:
        UserError: an unknown or repeated name, or a number that makes no sense.
    """

    protocol: Protocol
    datasets: tuple[str, ...]
    configs: Mapping[str, Config]
    seeds: tuple[int, ...]
    shots: tuple[int, ...]
    source: str | None = None
    compared_to: str | None = None
    recipes: Mapping[str, Config] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option, values in (("datasets", self.datasets), ("seeds", self.seeds), ("shots", self.shots)):
            if not values or len(set(values)) != len(values):
                raise UserError(f"--{option} must be different values, at least one, found {_list(values)}")
        if min(self.shots) < 1:
            raise UserError(f"--shots must be at least 1, found {min(self.shots)}")
        if not 0 <= min(self.seeds) <= max(self.seeds) < 2**32:
            raise UserError(f"--seeds must be numbers from 0 to 2^32 - 1, found {_list(self.seeds)}")
        if not self.configs:
            raise UserError("--methods must name at least one method")
        if self.compared_to is not None and self.compared_to not in self.configs:
            raise UserError(
                f"--compare-to {self.compared_to} is none of --methods: {', '.join(self.configs)}"
            )
        if (self.source is None) != (self.protocol.source is None):
            raise UserError(f"--source belongs to protocols with one source, not to {self.protocol.name}")
        if self.source in self.datasets:
            raise UserError(f"the source {self.source} is tested anyway: leave it out of --datasets")
        if len(self.shots) > 1 and not self.protocol.by_shots:
            raise UserError(f"{self.protocol.name} takes one number of --shots, found {_list(self.shots)}")
        for name in (*self.datasets, *([self.source] if self.source else [])):
            require_name(name)

    @property
    def trained_on(self) -> tuple[str, ...]:
        """The data sets that runs train on."""
        return (self.source,) if self.source else self.datasets


@dataclass(frozen=True)
class Entry:
    """One run of a grid.

    Args:
        config: A complete configuration. objective: What it trains and tests on.
        targets: Data sets that its prompts are tested on besides.
        trains: False where the method has nothing to learn: it runs once, whatever the seed and the shots.
    """

    config: Config
    objective: str
    targets: tuple[str, ...] = ()
    trains: bool = True

    @property
    def name(self) -> str:
        """The run's folder: equal runs of several protocols share one."""
        data, train = self.config.data, self.config.train
        return (
            f"{self.objective}-{file_name(data.name)}-{data.shots}shots-{self.config.method}-seed{train.seed}"
        )

    @property
    def title(self) -> str:
        """For people."""
        data, train = self.config.data, self.config.train
        return f"{data.name}, {self.config.method}, {shots_column(data.shots)}, seed {train.seed}"


def entries(asked: Asked, idle: Collection[str], missing: Collection[str] = ()) -> list[Entry]:
    """The runs, data set by data set, so that workers keep what they have loaded.

    Args:
        idle: Methods that have nothing to learn: one run is all of theirs.
        missing: Data sets that cannot be opened.
    """
    targets = tuple(d for d in asked.datasets if d not in missing) if asked.source else ()
    return [
        Entry(
            config.override({"data.name": dataset, "data.shots": shots, "train.seed": seed}).completed(),
            asked.protocol.objective,
            targets,
            method not in idle,
        )
        for dataset in asked.trained_on
        if dataset not in missing
        for shots in asked.shots
        for method, config in asked.configs.items()
        for seed in asked.seeds
        if method not in idle or (shots, seed) == (asked.shots[0], asked.seeds[0])
    ]


@with_config(STRICT)
@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Args:
        accuracies: Percent by set ("base", "new" or "all").
        tests: Percent by target. num_classes: Of the data sets that were tested.
        seconds: Of training and its own test. reason: Why it failed; "" where it has finished.
        environment: Versions and machine.
        contents: Digests of the splits of what it was trained and tested on, by data set, and of the weights.
        note: What a user should know of how it was made.
        config: The run's configuration, as plain data.
    """

    accuracies: dict[str, Percent] = field(default_factory=dict)
    tests: dict[str, Percent] = field(default_factory=dict)
    num_classes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    contents: dict[str, str] = field(default_factory=dict)
    note: str = ""
    config: dict[str, Any] = field(default_factory=dict, compare=False)


_OUTCOME = TypeAdapter(Outcome)


@dataclass(frozen=True)
class Record(Outcome):
    """What a run's record.json holds."""

    entry: Entry = field(kw_only=True)

    def write(self, folder: Path) -> None:
        """Replace FOLDER/record.json."""
        entry = self.entry
        results = {key: value for key, value in vars(self).items() if key != "entry"}
        content = {
            "name": entry.name,
            "state": "failed" if self.reason else "finished",
            "method": entry.config.method,
            "dataset": entry.config.data.name,
            "shots": entry.config.data.shots,
            "seed": entry.config.train.seed,
            "objective": entry.objective,
            "trains": entry.trains,
            **results,
            "config": entry.config.model_dump(mode="json"),
        }
        write_atomically(folder / "record.json", json.dumps(content, indent=1).encode())


def read_record(entry: Entry, folder: Path) -> Record | None:
    """FOLDER/record.json, or None where there is none that can be read: the run then goes on."""
    try:
        found = _OUTCOME.validate_json(read_bytes(folder / "record.json"))
    except (OSError, ValidationError):
        return None
    told = (found.accuracies or found.reason) and found.config
    return Record(**vars(found), entry=entry) if told else None


@dataclass(frozen=True)
class Job:
    """A run as the driver hands it to a worker; its state lies in `folder`."""

    entry: Entry
    folder: Path
    threads: int
    stream_cpus: float

    def failed(self, reason: str) -> Record:
        """Write and return a record that says so; figures that are there already stay."""
        record = read_record(self.entry, self.folder) or Record(entry=self.entry)
        record = replace(record, reason=one_line(reason), environment=environment())
        record.write(self.folder)
        return record


class GridFolder:
    """OUT: runs/NAME/ with each run's files, and a folder of tables for each protocol."""

    def __init__(self, out: Path) -> None:
        self.path = resolved(out)

    def run(self, entry: Entry) -> Path:
        """The run's folder."""
        return self.path / "runs" / entry.name

    def require_same(self, wanted: list[Entry], contents: Mapping[str, str]) -> None:
        """Refuse to go on with runs that were made with other settings, images or weights.

        Raises:
            UserError: with the difference.
        """
        for entry in wanted:
            folder, record = self.run(entry), self.record(entry)
            for made in _configurations(folder, record):
                if changed := differences(absolute_paths(made).flat(), entry.config.flat()):
                    raise UserError(
                        f"the run {folder} was made with other settings ({changed}): repeat them, or choose "
                        "another --out"
                    )
            made_with = record.contents if record else {}
            other = [name for name, digest in made_with.items() if contents.get(name, digest) != digest]
            if other:
                what = "weights" if other[0] == WEIGHTS else f"splits of {other[0]}"
                raise UserError(
                    f"the run {folder} was made with other {what} than now: restore them, or choose "
                    "another --out"
                )

    def record(self, entry: Entry) -> Record | None:
        """The run's record, or None where there is none that can be read."""
        return read_record(entry, self.run(entry))

    def finished(self, entry: Entry) -> Record | None:
        """The run's record if all that is asked of it is there."""
        record = self.record(entry)
        if record is None or record.reason or not set(entry.targets) <= set(record.tests):
            return None
        return record


def _configurations(folder: Path, record: Record | None) -> Iterator[Config]:
    """What a run was made with, as far as its folder says: either of the two files may have been lost."""
    if size_of(folder / "config.yaml") is not None:
        yield load_config(folder / "config.yaml")
    if record is not None:
        yield parse(record.config, where=f"the settings in {folder / 'record.json'}")


def _list(values: tuple[Any, ...]) -> str:
    return ", ".join(map(str, values)) or "none"
