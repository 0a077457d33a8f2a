"""Configuration of a study as one typed tree.

The command line (`OPTIONS`), the arguments of `Study` and study.yaml are three forms of this tree.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from prometar.config.recipes import Protocol
from prometar.config.settings import (
    Config,
    absolute_paths,
    configure,
    describe_differences,
    flatten,
    parse_assignments,
)
from prometar.data.datasets.catalog import default_root, file_name, reject_unused_root
from prometar.data.splits.objective import protocol_of
from prometar.embedded.datasets import DEFAULT_DATASET, RENDERED, resolve_backbone
from prometar.errors import UserError
from prometar.io.files import resolve_path
from prometar.io.strict_model import StrictModel, describe_problem
from tune.space.ranges import Distinct, Settings, Value
from tune.space.space import EPOCHS_KEY, Space, built_in_spaces, load_enqueued, load_space, space_of_method

# Defaults for rendered (generated) datasets, on which a run takes seconds.
TRIALS_IF_RENDERED = 24
EPOCHS_IF_RENDERED = 5
MAX_SEED_PAIRS = 15
"""Maximum number of seed pairs (selected and baseline run) in a final test with `--final-seeds auto`."""
FIRST_CONFIRMATION_SEED = 1000
"""First seed of the confirmation. Seeds of the search and of the final test are skipped."""

_TEST_EPOCHS_KEY = "test.epochs"
"""Key of `baseline_changes` for the epochs of confirmation and final test on a dataset."""

Goal = Literal["objective", "base", "new", "seconds"]
"""Value of a trial that the search optimizes: score, base or new accuracy, or training time in seconds."""
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "objective": "maximize",
    "base": "maximize",
    "new": "maximize",
    "seconds": "minimize",
}
"""Direction of each goal, as Optuna names it."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Enqueued(StrictModel):
    """Settings that are tried before sampled ones.

    Args:
        settings: Settings of the space. Missing ones are sampled.
        source: YAML file, or folder of the study, from which the settings come. "" in earlier versions.
        trial: Number of the trial in that study. None if the settings come from a file.
    """

    settings: dict[str, Value]
    source: str = ""
    trial: int | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_bare_settings(cls, given: object) -> object:
        """Accept bare settings, which version 0.2 wrote.

        All keys of bare settings contain a dot, but no field of this class does.
        """
        if isinstance(given, Mapping) and given and all("." in str(key) for key in given):
            return {"settings": given}
        return given

    def __str__(self) -> str:
        """Return the source as text, such as "trial 3 of out/dtd" or "start.yaml"."""
        return self.source if self.trial is None else f"trial {self.trial} of {self.source}"


class SearchConfig(StrictModel):
    """Sampling and scoring of settings. A trial's score is the mean over its datasets and seeds."""

    datasets: Annotated[tuple[str, ...], Distinct] = Field(
        (DEFAULT_DATASET,), min_length=1, description="Datasets. A trial uses the same settings on each."
    )
    space: Space = Field(
        description="Name of a search space, or a YAML file. Default: --method, or 'default'."
    )
    trials: int = Field(
        40, ge=1, le=1_000_000, description="Number of trials. Default: 24 for rendered datasets, else 40."
    )
    objective: str = Field(
        "drift", description="Score: drift, base_val, oracle_test (reads test images) or module:Name."
    )
    goals: Annotated[tuple[Goal, ...], Distinct] = Field(
        ("objective",),
        min_length=1,
        description="objective, or for a Pareto front several of objective, base, new and seconds.",
    )
    sampler: str = Field("tpe", description="tpe, random, gp or module:Name.")
    pruner: str = Field(
        "percentile",
        description="percentile, median, asha, hyperband, none or module:Name. Default: none if epochs are "
        "searched or there are several goals, else percentile.",
    )
    seed: Seed = Field(0, description="Seed of the sampler, and first seed of every trial. Default: 0.")
    seeds_per_trial: int = Field(1, ge=1, le=1000, description="Runs (seeds) per trial and dataset.")
    val_per_class: int = Field(20, ge=1, le=1_000_000, description="Maximum validation images per class.")
    enqueue: tuple[Enqueued, ...] = Field(
        (), description="Settings to try first: YAML files, or folders of studies, such as out/dtd."
    )
    enqueued_studies: tuple[Path, ...] = Field(
        (), exclude=True, description="Studies of --enqueue. `tune.stages.enqueued` adds their settings."
    )

    @field_validator("goals")
    @classmethod
    def _check_goals(cls, goals: tuple[Goal, ...]) -> tuple[Goal, ...]:
        if len(goals) == 1 and goals[0] != "objective":
            raise ValueError("a single goal must be the objective. Add a second goal for a Pareto front")
        return goals

    @model_validator(mode="after")
    def _check_seeds(self) -> Self:
        if self.seeds[-1] >= 2**32:
            raise ValueError(f"--seed: seeds must be below {2**32}, but the last one is {self.seeds[-1]}")
        return self

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of every trial."""
        return tuple(range(self.seed, self.seed + self.seeds_per_trial))


class ConfirmConfig(StrictModel):
    """Number of trials that the confirmation reruns, and number of fresh seeds."""

    top: int = Field(
        3, ge=0, le=1000, description="Best trials to rerun besides the baseline. 0 skips the confirmation."
    )
    seeds: int = Field(2, ge=1, le=1000, description="Fresh seeds per confirmed trial.")


class FinalTestConfig(StrictModel):
    """Comparison of the selected settings with the default settings on test images.

    With seeds `auto`, up to `MAX_SEED_PAIRS` seed pairs run, until the confidence interval of the difference
    in H (harmonic mean of base and new accuracy) excludes 0 or lies within ±`min_relevant`.
    """

    seeds: Annotated[tuple[Seed, ...], Distinct] | Literal["auto"] = Field(
        "auto", description="auto, or seeds such as '1 2 3'."
    )
    epochs: int = Field(
        10,
        ge=1,
        le=100_000,
        description="Epochs of confirmation and final test. Default: from --method, but at least --epochs.",
    )
    min_relevant: float = Field(1.0, gt=0, le=100, description="Smallest relevant difference in H (points).")
    predictions: bool = Field(
        False, description="Write predictions.parquet in the folder of each final-test run."
    )

    @field_validator("seeds", mode="before")
    @classmethod
    def _parse_seeds(cls, given: object) -> object:
        """Accept one seed, or a text such as "auto", "1 2 3" or "1,2,3"."""
        if isinstance(given, int):
            return [given]
        words = given.replace(",", " ").split() if isinstance(given, str) else given
        return "auto" if words == ["auto"] else words


class ResourcesConfig(StrictModel):
    """Resources. They change results only by rounding. Concurrency may also change the samples."""

    max_concurrent: int | None = Field(
        None, ge=1, description="Maximum concurrent trials. Default: as many as fit, up to 1/5 of --trials."
    )
    cpus_per_trial: float | None = Field(
        None, ge=0.1, lt=1e6, description="CPUs per trial. Half of them load images. Default: an equal share."
    )
    gpus_per_trial: Annotated[float, Field(ge=0, lt=1e6)] | Literal["auto"] = Field(
        "auto", description="GPUs per trial. auto: an equal share, between 1/4 and 1."
    )
    epoch_timeout: float | None = Field(
        None, gt=0, le=1e6, description="Seconds per epoch before a trial is restarted. Default: no limit."
    )
    max_hours: float | None = Field(
        None, gt=0, le=1e6, description="Start no trials after this many hours of search. Default: no limit."
    )
    budget_steps: int | None = Field(
        None, ge=1, le=10**12, description="Start no trials once trials need this many training steps."
    )
    budget_seconds: float | None = Field(
        None, gt=0, le=1e9, description="Start no trials once trials have trained for this many seconds."
    )


class LocationConfig(StrictModel):
    """Location of a study, and trackers to which each epoch is logged. Neither affects results."""

    out: Path = Field(Path("out"), description="Folder of studies.")
    study: str = Field("", pattern=r"^(\w[\w.-]*)?$", description="Name of the study. Default: the datasets.")
    storage: str | None = Field(None, description="Optuna storage URL. Default: study.db in OUT/STUDY.")
    address: str | None = Field(
        None, description="Address of a running Ray cluster. Default: start Ray on this machine."
    )
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = ()


class StudyConfig(StrictModel):
    """Configuration of a study: baseline, search, confirmation, final test, resources and location.

    Args:
        baseline: Configuration of the baseline (the default settings) on the first dataset. Its key in
            study.yaml is `run`.
        baseline_changes: Changes of the baseline on each further dataset: settings that differ from those on
            the first dataset, by dotted key. Recipes may have settings for single datasets. The epochs of
            the final test have the key `test.epochs`.
    """

    model_config = ConfigDict(validate_by_name=True)  # accept `baseline` as well as its alias `run`

    baseline: Config = Field(alias="run")
    baseline_changes: dict[str, dict[str, JsonValue]] = Field({}, exclude_if=lambda changes: not changes)
    search: SearchConfig
    confirm: ConfirmConfig = ConfirmConfig()
    test: FinalTestConfig = FinalTestConfig()
    resources: ResourcesConfig = ResourcesConfig()
    location: LocationConfig = LocationConfig()

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Build a configuration from the options of `tune/search.py` or `Study`.

        Args:
            options: Values by option name, with "_" instead of "-". None selects the default. `settings` is a
                list of `key=value` strings or a mapping by dotted key. Keys belong to the run (`optim.lr`) or
                to the study (`confirm.seeds`).

        Raises:
            UserError: an option does not exist, or a value is invalid.

        Example:
            >>> StudyConfig.of(dataset="textures", trials=3).search.trials
            3
        """
        given = {name.replace("_", "-"): value for name, value in options.items() if value is not None}
        settings = given.pop("settings", {})
        unknown = given.keys() - OPTIONS.keys()
        if unknown:
            raise UserError(f"Unknown option '{min(unknown)}'. See `prometar search --help`.")
        if not isinstance(settings, Mapping):
            settings = parse_assignments(list(_as_tuple(settings)))

        by_field = {OPTIONS[name]: value for name, value in given.items()}  # e.g. {"search.trials": 3}
        sections_of_study = cls.model_fields.keys() - {"baseline_changes"}
        for key, value in settings.items():
            section = key.partition(".")[0]
            field = key if section in sections_of_study else f"baseline.{key}"
            if field in by_field:
                raise UserError(f"--set {key} is also given as an option. Pass only one of them.")
            if field in _ONLY_AS_OPTION:
                raise UserError(f"--set {key} is not allowed in a study. Use {_ONLY_AS_OPTION[field]}.")
            by_field[field] = value

        baseline, baseline_changes, by_field = cls._with_defaults(by_field)
        tree: dict[str, Any] = {}
        for field, value in by_field.items():
            section, _, name = field.partition(".")
            tree.setdefault(section, {})[name] = value
        tree["baseline"] = baseline
        tree["baseline_changes"] = baseline_changes
        try:
            return cls.model_validate(tree)
        except ValidationError as error:
            raise UserError(" ".join(_messages(error))) from None

    @staticmethod
    def _with_defaults(
        by_field: dict[str, Any],
    ) -> tuple[Config, dict[str, dict[str, Any]], dict[str, Any]]:
        """Return `baseline`, `baseline_changes`, and `by_field` with defaults that depend on other values.

        Raises:
            UserError: a value is invalid.
        """
        datasets = tuple(map(str, _as_tuple(by_field.get("search.datasets", DEFAULT_DATASET))))
        option_values, set_values = _values_of_run(by_field)
        method = option_values.pop("method", "prometar")
        if RENDERED.keys() >= set(datasets):
            option_values.setdefault(EPOCHS_KEY, EPOCHS_IF_RENDERED)
            by_field.setdefault("search.trials", TRIALS_IF_RENDERED)
        builder = _BaselineBuilder(
            method=method,
            option_values=option_values | _data_and_backbone(datasets, option_values),
            set_values=set_values,
            seed=by_field.get("search.seed", 0),
            protocol=protocol_of(by_field.get("search.objective", "drift")),
        )

        baseline = builder.build(next(iter(datasets), DEFAULT_DATASET))
        Config.require_used(set_values, [baseline], "the default settings")
        given_test_epochs = by_field.get("test.epochs")
        by_field.setdefault("test.epochs", builder.test_epochs(baseline))

        baseline_changes: dict[str, dict[str, Any]] = {}
        builder_of_others = builder.without_loader_arguments()
        for dataset in datasets[1:]:
            config = builder_of_others.build(dataset)
            changes = _changes(config, baseline)
            if given_test_epochs is None:
                test_epochs = builder.test_epochs(config)
                if test_epochs != by_field["test.epochs"]:
                    changes[_TEST_EPOCHS_KEY] = test_epochs
            if changes:
                baseline_changes[dataset] = changes

        space = by_field.get("search.space", space_of_method(method))
        if space in built_in_spaces():
            # A built-in space covers several methods, so some of its settings have no effect here.
            space = load_space(space).restrict(baseline, fixed={EPOCHS_KEY} & option_values.keys())
        elif not isinstance(space, Space):
            space = load_space(str(space))
        goals = _as_tuple(by_field.get("search.goals", "objective"))
        if EPOCHS_KEY in space.ranges or len(goals) > 1:
            by_field.setdefault("search.pruner", "none")

        enqueued, enqueued_studies = _load_sources(_as_tuple(by_field.get("search.enqueue", ())), space)
        by_field["search.datasets"] = datasets
        by_field["search.space"] = space
        by_field["search.enqueue"] = enqueued
        by_field["search.enqueued_studies"] = enqueued_studies
        return baseline, baseline_changes, by_field

    def identity(self, digests: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return the values that must not change when the study resumes.

        Args:
            digests: Digests of files and code that determine results, such as weights, by name.
        """
        search = self.search.model_dump(mode="json", exclude={"space", "trials", "enqueue"})
        space = {f"space.{key}": text for key, text in self.search.space.describe().items()}
        changes: dict[str, JsonValue] = {}
        for dataset, settings in self.baseline_changes.items():
            for key, value in settings.items():
                if key != _TEST_EPOCHS_KEY:
                    changes[f"{dataset}: {key}"] = value
        return {**flatten(search), **space, **self.baseline.identity(), **changes, **digests}

    def require_same(self, previous: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        """Check that `identity` has not changed since the study was started.

        Args:
            previous: `identity` when the study was started.
            digests: Current digests, as in `identity`.

        Raises:
            UserError: the identity has changed. The message lists the differences.
        """
        changed = describe_differences(previous, self.identity(digests))
        if changed:
            raise UserError(
                f"The study {self.name} was started with other settings ({changed}). Restore them, or "
                "start another study with --study NAME."
            )

    @property
    def name(self) -> str:
        """Name of the study and of its folder."""
        return self.location.study or "-".join(map(file_name, self.search.datasets))

    @property
    def storage(self) -> str:
        """Optuna storage URL."""
        path = f"{resolve_path(self.location.out)}/{self.name}/study.db"
        return self.location.storage or f"sqlite:///{quote(path)}"

    @property
    def baseline_settings(self) -> dict[str, Value]:
        """Default values of the searched settings on the first dataset.

        Raises:
            UserError: a default value lies outside its range.
        """
        return self.search.space.default_values(self.baseline)

    @property
    def max_epochs(self) -> int:
        """Maximum number of epochs of a trial."""
        epochs = [self.baseline.train.epochs]
        for changes in self.baseline_changes.values():
            if EPOCHS_KEY in changes:
                epochs.append(int(str(changes[EPOCHS_KEY])))
        # If epochs are searched, the probe values contain the upper bound.
        epochs += map(int, self.search.space.probe_values(EPOCHS_KEY))
        return max(epochs)

    @property
    def max_test_epochs(self) -> int:
        """Maximum number of epochs of a run of confirmation or final test, if epochs are not searched."""
        epochs: list[int] = []
        for dataset in self.search.datasets:
            _, test_epochs = self._changes_on(dataset)
            epochs.append(test_epochs)
        return max(epochs)

    @property
    def baselines(self) -> tuple[Config, ...]:
        """Configuration of the baseline on each dataset."""
        baselines = []
        for dataset in self.search.datasets:
            changes, _ = self._changes_on(dataset)
            baselines.append(self.baseline.override({**changes, "data.name": dataset}))
        return tuple(baselines)

    def _changes_on(self, dataset: str) -> tuple[dict[str, Any], int]:
        """Return the changes of the baseline on a dataset by dotted key, and the epochs of its final test."""
        changes: dict[str, Any] = dict(self.baseline_changes.get(dataset, {}))
        test_epochs = int(changes.pop(_TEST_EPOCHS_KEY, self.test.epochs))
        return changes, test_epochs

    @property
    def final_seeds(self) -> tuple[int, ...]:
        """Seeds of the final test, in order. With `auto`, the first seeds that the search does not use."""
        if self.test.seeds != "auto":
            return self.test.seeds
        return _unused_seeds(1, MAX_SEED_PAIRS, used=self.search.seeds)

    @property
    def confirmation_seeds(self) -> tuple[int, ...]:
        """Seeds of the confirmation. Neither the search nor the final test uses them."""
        used = (*self.search.seeds, *self.final_seeds)
        return _unused_seeds(FIRST_CONFIRMATION_SEED, self.confirm.seeds, used=used)

    def run_config(
        self, settings: Settings, *, dataset: str, seed: int, final_epochs: bool = False
    ) -> Config:
        """Return the configuration of one run.

        The run has the given settings. Its other settings are those of the baseline on its dataset. If the
        given settings are the default ones on the first dataset, the run is the baseline on its own dataset.

        Args:
            settings: Values of the searched settings by dotted key.
            dataset: Dataset of the run.
            seed: Seed of the run.
            final_epochs: True for a run of the confirmation or the final test. The run trains for
                `test.epochs`, unless epochs are searched and `settings` are not the default settings.
        """
        changes, test_epochs = self._changes_on(dataset)
        is_baseline = settings == self.baseline_settings
        values = {**settings, **changes} if is_baseline else {**changes, **settings}
        if final_epochs and (is_baseline or EPOCHS_KEY not in settings):
            values[EPOCHS_KEY] = test_epochs
        return self.baseline.override({**values, "data.name": dataset, "train.seed": seed})


def _values_of_run(by_field: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a run that have an option, and those given with `--set`, by dotted key."""
    fields_of_options = set(OPTIONS.values())
    option_values: dict[str, Any] = {}
    set_values: dict[str, Any] = {}
    for field, value in by_field.items():
        section, _, key = field.partition(".")
        if section != "baseline":
            continue
        if field in fields_of_options:
            option_values[key] = value
        else:
            set_values[key] = value
    return option_values, set_values


def _data_and_backbone(datasets: Sequence[str], option_values: Mapping[str, Any]) -> dict[str, object]:
    """Return the data root and the backbone of all runs, by dotted key.

    Raises:
        UserError: a data root is given although no dataset needs it, or the backbone is invalid.
    """
    backbone, pretrained = resolve_backbone(
        datasets, option_values.get("backbone.name"), option_values.get("backbone.pretrained")
    )
    root = option_values.get("data.root")
    if root:
        reject_unused_root(datasets)
    else:
        root = default_root(*datasets)
    return {
        "backbone.name": backbone,
        "backbone.pretrained": pretrained,
        "data.root": str(root) if root else None,
    }


@dataclass(frozen=True, kw_only=True)
class _BaselineBuilder:
    """Builder of the baseline on each dataset of a study.

    Args:
        method: Name of a method, or path of a recipe file.
        option_values: Settings of a run that have an option, by dotted key.
        set_values: Settings of a run that are given with `--set`, by dotted key.
        seed: Seed of a run. It is not validated yet.
        protocol: Benchmark protocol, which determines the recipe's settings by dataset.
    """

    method: str
    option_values: Mapping[str, Any]
    set_values: Mapping[str, Any]
    seed: object
    protocol: Protocol

    def build(self, dataset: str) -> Config:
        """Return the baseline on a dataset.

        Raises:
            UserError: a value is invalid.
        """
        # Messages name the option of an invalid value. Of `option_values`, only --epochs is unchecked.
        by_option = {
            "--epochs": {**self.option_values, "data.name": dataset},
            "--set": self.set_values,
            "--seed": {"train.seed": self.seed},
        }
        return absolute_paths(configure(self.method, by_source=by_option, protocol=self.protocol))

    def test_epochs(self, config: Config) -> int:
        """Return the default number of epochs of the final test on the dataset of `config`.

        Trials may be shorter than published, to save time. A test must not be shorter than the trials.
        """
        data = {"data.name": config.data.name, "data.shots": config.data.shots}
        published = configure(self.method, data, protocol=self.protocol)
        return max(published.train.epochs, config.train.epochs)

    def without_loader_arguments(self) -> Self:
        """Return the builder for further datasets. A custom loader's arguments are for the first one only."""
        set_values: dict[str, Any] = {}
        for key, value in self.set_values.items():
            if not key.startswith("data.args."):
                set_values[key] = value
        return replace(self, set_values=set_values)


def _load_sources(sources: Iterable[object], space: Space) -> tuple[list[Enqueued], list[Path]]:
    """Return the enqueued settings in files, and the folders of studies.

    Args:
        sources: Values of `--enqueue`. Those that are not files are folders of studies.
        space: Search space.

    Raises:
        UserError: the settings in a file are invalid.
    """
    enqueued: list[Enqueued] = []
    studies: list[Path] = []
    for source in sources:
        path = Path(str(source))
        if path.is_file():
            for settings in load_enqueued(path, space):
                enqueued.append(Enqueued(settings=settings, source=str(path)))
        else:
            studies.append(path)
    return enqueued, studies


def _changes(config: Config, baseline: Config) -> dict[str, Any]:
    """Return the settings of `config`, except those of the data, that differ from `baseline`."""
    before = baseline.flat()
    changes: dict[str, Any] = {}
    for key, value in config.flat().items():
        has_changed = key not in before or before[key] != value
        if has_changed and not key.startswith("data."):
            changes[key] = value
    return changes


OPTION_GROUPS: dict[str, dict[str, str]] = {
    "Basics": {
        "dataset": "search.datasets",
        "data-root": "baseline.data.root",
        "trials": "search.trials",
        "epochs": "baseline.train.epochs",
        "space": "search.space",
        "out": "location.out",
        "study": "location.study",
    },
    "Training": {
        "method": "baseline.method",
        "backbone": "baseline.backbone.name",
        "pretrained": "baseline.backbone.pretrained",
    },
    "Search": {
        "sampler": "search.sampler",
        "pruner": "search.pruner",
        "seed": "search.seed",
        "seeds-per-trial": "search.seeds_per_trial",
        "enqueue": "search.enqueue",
        "max-hours": "resources.max_hours",
    },
    "Selection and test": {
        "objective": "search.objective",
        "goals": "search.goals",
        "top": "confirm.top",
        "final-seeds": "test.seeds",
        "final-epochs": "test.epochs",
        "predictions": "test.predictions",
    },
    "Resources": {
        "max-concurrent": "resources.max_concurrent",
        "cpus-per-trial": "resources.cpus_per_trial",
        "gpus-per-trial": "resources.gpus_per_trial",
        "storage": "location.storage",
        "address": "location.address",
    },
}
"""Field that each option of `tune/search.py` sets, by group of `--help`."""
OPTIONS = {name: field for options in OPTION_GROUPS.values() for name, field in options.items()}
"""Field by option. Other fields can be set with `--set`."""

# Fields that `--set` must not change, and their option.
_ONLY_AS_OPTION = {
    "baseline.data.name": "--dataset",
    "baseline.train.seed": "--seed",
    "search.space": "--space",
    "search.enqueued_studies": "--enqueue",
}


def _messages(error: ValidationError) -> Iterator[str]:
    """Yield a message about the first problem of each invalid field."""
    names = {field: f"--{option}" for option, field in OPTIONS.items()}
    first_problems: dict[str, Any] = {}
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"][:2]))
        first_problems.setdefault(field, problem)
    for field, problem in first_problems.items():
        name = names.get(field, f"--set {field.rstrip('.')}")
        kind = problem["type"]
        text = str(problem.get("ctx", {}).get("error", ""))
        if kind == "extra_forbidden":
            yield f"{name} is not a setting."
        elif kind == "string_pattern_mismatch":
            yield f"{name} must be a name of letters, digits, '_', '-' and '.', got {problem['input']}."
        elif kind == "value_error" and text.startswith("--"):  # the text names the option
            yield f"{text}."
        else:
            yield f"{describe_problem(problem, name)}."


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """Return the elements of a collection, or a tuple of one element for a single value."""
    is_single = isinstance(value, str | Space) or not isinstance(value, Iterable)
    return (value,) if is_single else tuple(value)


def _unused_seeds(start: int, number: int, *, used: tuple[int, ...]) -> tuple[int, ...]:
    """Return the first `number` seeds from `start` on that are not in `used`."""
    unused = (seed for seed in count(start) if seed not in used)
    return tuple(islice(unused, number))
