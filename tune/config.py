"""Configuration of a study as one typed tree.

The command line (`OPTIONS`), the arguments of `Study` and study.yaml are three forms of this tree.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

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

# Defaults for rendered (generated) datasets.
TRIALS_IF_RENDERED = 24
EPOCHS_IF_RENDERED = 5
MAX_SEED_PAIRS = 15
"""Maximum number of seed pairs (selected and baseline run) in a final test with `--final-seeds auto`."""
FIRST_CONFIRMATION_SEED = 1000
"""First seed of the confirmation. Seeds of the search and of the final test are skipped."""

_TEST_EPOCHS_KEY = "test.epochs"
"""Key of `baseline_changes` for the epochs of confirmation and final test on a dataset."""

Goal = Literal["objective", "base", "new", "seconds"]
DIRECTIONS: dict[str, Literal["minimize", "maximize"]] = {
    "objective": "maximize",
    "base": "maximize",
    "new": "maximize",
    "seconds": "minimize",
}
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
        """Accept settings without a source, which version 0.2 wrote. Their keys contain a dot."""
        if isinstance(given, Mapping) and given and all("." in str(key) for key in given):
            return {"settings": given}
        return given

    def __str__(self) -> str:
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
        if isinstance(given, int):
            return [given]  # --set test.seeds=1, or Study(final_seeds=1)
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
        baseline: Configuration of the baseline on the first dataset. Its key in study.yaml is `run`.
        baseline_changes: By further dataset, settings of the baseline that differ from those on the first
            (recipes may have settings for single datasets). `test.epochs` is a setting here, too.
    """

    model_config = ConfigDict(validate_by_name=True)  # besides the alias

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
        if unknown := given.keys() - OPTIONS.keys():
            raise UserError(f"Unknown option '{min(unknown)}'. See `prometar search --help`.")
        if not isinstance(settings, Mapping):
            settings = parse_assignments(list(_as_tuple(settings)))
        by_field = {OPTIONS[name]: value for name, value in given.items()}  # e.g. {"search.trials": 3}
        for key, value in settings.items():
            of_study = key.partition(".")[0] in cls.model_fields.keys() - {"baseline_changes"}
            field = key if of_study else f"baseline.{key}"
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
        try:
            return cls.model_validate({**tree, "baseline": baseline, "baseline_changes": baseline_changes})
        except ValidationError as error:
            raise UserError(" ".join(_messages(error))) from None

    @staticmethod
    def _with_defaults(
        by_field: dict[str, Any],
    ) -> tuple[Config, dict[str, dict[str, Any]], dict[str, Any]]:
        """Return `baseline`, `baseline_changes`, and `by_field` with defaults that depend on other values."""
        prefix = "baseline."
        run_values = {
            field.removeprefix(prefix): value for field, value in by_field.items() if field.startswith(prefix)
        }
        datasets = tuple(map(str, _as_tuple(by_field.get("search.datasets", DEFAULT_DATASET))))
        method = run_values.pop("method", "prometar")
        option_keys = {field.removeprefix("baseline.") for field in OPTIONS.values()}
        set_values = {key: run_values.pop(key) for key in run_values.keys() - option_keys}  # given with --set
        if RENDERED.keys() >= set(datasets):
            run_values.setdefault(EPOCHS_KEY, EPOCHS_IF_RENDERED)
            by_field.setdefault("search.trials", TRIALS_IF_RENDERED)
        backbone, pretrained = resolve_backbone(
            datasets, run_values.get("backbone.name"), run_values.get("backbone.pretrained")
        )
        root = run_values.pop("data.root", None)
        if root:
            reject_unused_root(datasets)
        else:
            root = default_root(*datasets)
        run_values |= {
            "backbone.name": backbone,
            "backbone.pretrained": pretrained,
            "data.name": next(iter(datasets), DEFAULT_DATASET),
            "data.root": str(root) if root else None,
        }
        seed = {"train.seed": by_field.get("search.seed", 0)}
        # Messages name the option of an invalid value. Of `run_values`, only --epochs is unchecked.
        by_option = {"--epochs": run_values, "--set": set_values, "--seed": seed}
        protocol = protocol_of(by_field.get("search.objective", "drift"))
        baseline = absolute_paths(configure(method, by_source=by_option, protocol=protocol))
        Config.require_used(set_values, [baseline], "the default settings")

        def test_epochs(config: Config) -> int:
            # Trials may be shorter than published, to save time. A test must not be shorter than the trials.
            data = {"data.name": config.data.name, "data.shots": config.data.shots}
            published = configure(method, data, protocol=protocol)
            return max(published.train.epochs, config.train.epochs)

        given_test_epochs = by_field.get("test.epochs")
        by_field.setdefault("test.epochs", test_epochs(baseline))
        baseline_changes: dict[str, dict[str, Any]] = {}
        for dataset in datasets[1:]:
            # Arguments of a custom loader apply only to the first dataset.
            by_option["--epochs"] = {**run_values, "data.name": dataset}
            by_option["--set"] = {
                key: each for key, each in set_values.items() if not key.startswith("data.args.")
            }
            config = absolute_paths(configure(method, by_source=by_option, protocol=protocol))
            changes = _changes(config, baseline)
            if given_test_epochs is None and test_epochs(config) != by_field["test.epochs"]:
                changes[_TEST_EPOCHS_KEY] = test_epochs(config)
            if changes:
                baseline_changes[dataset] = changes
        space = by_field.get("search.space", space_of_method(method))
        if space in built_in_spaces():  # they cover several methods: drop settings without effect
            space = load_space(space).restrict(baseline, fixed={EPOCHS_KEY} & run_values.keys())
        elif not isinstance(space, Space):
            space = load_space(str(space))
        if EPOCHS_KEY in space.ranges or len(_as_tuple(by_field.get("search.goals", "objective"))) > 1:
            by_field.setdefault("search.pruner", "none")
        sources = [Path(str(each)) for each in _as_tuple(by_field.get("search.enqueue", ()))]
        search = {
            "datasets": datasets,
            "space": space,
            "enqueue": [
                Enqueued(settings=settings, source=str(path))
                for path in sources
                if path.is_file()
                for settings in load_enqueued(path, space)
            ],
            "enqueued_studies": [path for path in sources if not path.is_file()],
        }
        by_field |= {f"search.{name}": value for name, value in search.items()}
        return baseline, baseline_changes, by_field

    def identity(self, digests: Mapping[str, str] = {}) -> dict[str, Any]:
        """Return the values that must not change when the study resumes.

        Args:
            digests: Digests of files and code that determine results, such as weights, by name.
        """
        search = self.search.model_dump(mode="json", exclude={"space", "trials", "enqueue"})
        space = {f"space.{key}": text for key, text in self.search.space.describe().items()}
        changes = {
            f"{dataset}: {key}": value
            for dataset, settings in self.baseline_changes.items()
            for key, value in settings.items()
            if key != _TEST_EPOCHS_KEY
        }
        return {**flatten(search), **space, **self.baseline.identity(), **changes, **digests}

    def require_same(self, previous: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        """Check that `identity` has not changed since the study was started.

        Raises:
            UserError: it has changed. The message lists the differences.
        """
        if changed := describe_differences(previous, self.identity(digests)):
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
        """Maximum number of epochs of a trial. Upper bounds of ranges are among their probe values."""
        epochs = [self.baseline.train.epochs]
        epochs += [
            int(str(each[EPOCHS_KEY])) for each in self.baseline_changes.values() if EPOCHS_KEY in each
        ]
        return max([*epochs, *map(int, self.search.space.probe_values(EPOCHS_KEY))])

    @property
    def max_test_epochs(self) -> int:
        """Maximum number of epochs of a run of confirmation or final test, if epochs are not searched."""
        return max(self._changes_on(dataset)[1] for dataset in self.search.datasets)

    @property
    def baselines(self) -> tuple[Config, ...]:
        """Configuration of the baseline on each dataset."""
        baselines = []
        for dataset in self.search.datasets:
            changes, _ = self._changes_on(dataset)
            baselines.append(self.baseline.override({**changes, "data.name": dataset}))
        return tuple(baselines)

    def _changes_on(self, dataset: str) -> tuple[dict[str, Any], int]:
        """Return the changes of the baseline on a dataset, and the epochs of its final test."""
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

        A run starts from the baseline on its dataset, over which `settings` win. If `settings` are those of
        the baseline, the run is the baseline on its dataset, which may have other values there.

        Args:
            settings: Searched settings by dotted key.
            final_epochs: True for a run of the confirmation or the final test. It trains for `test.epochs`,
                unless epochs are searched and `settings` are not the default settings.
        """
        changes, test_epochs = self._changes_on(dataset)
        is_baseline = settings == self.baseline_settings
        values = {**settings, **changes} if is_baseline else {**changes, **settings}
        if final_epochs and (is_baseline or EPOCHS_KEY not in settings):
            values[EPOCHS_KEY] = test_epochs
        return self.baseline.override({**values, "data.name": dataset, "train.seed": seed})


def _changes(config: Config, baseline: Config) -> dict[str, Any]:
    """Return the settings of `config`, except those of the data, that differ from `baseline`."""
    before = baseline.flat()
    return {
        key: value
        for key, value in config.flat().items()
        if not key.startswith("data.") and (key not in before or before[key] != value)
    }


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

_ONLY_AS_OPTION = {
    "baseline.data.name": "--dataset",
    "baseline.train.seed": "--seed",
    "search.space": "--space",
    "search.enqueued_studies": "--enqueue",
}


def _messages(error: ValidationError) -> Iterator[str]:
    """Yield a message about the first problem of each invalid field."""
    names = {field: f"--{option}" for option, field in OPTIONS.items()}
    first = {".".join(map(str, each["loc"][:2])): each for each in reversed(error.errors())}
    for field, each in reversed(first.items()):  # reversed twice: the first problem of a field wins
        name = names.get(field, f"--set {field.rstrip('.')}")
        match each["type"]:
            case "extra_forbidden":
                yield f"{name} is not a setting."
            case "string_pattern_mismatch":
                yield f"{name} must be a name of letters, digits, '_', '-' and '.', got {each['input']}."
            case "value_error" if (text := str(each["ctx"]["error"])).startswith("--"):
                yield f"{text}."
            case _:
                yield f"{describe_problem(each, name)}."


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) and not isinstance(value, str | Space) else (value,)


def _unused_seeds(start: int, number: int, *, used: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(islice((seed for seed in count(start) if seed not in used), number))
