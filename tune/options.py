"""What a study can be asked, with its defaults: one place for the command line and for `Study` in Python."""

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, InstanceOf, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from prometar.bundled.suite import SUITE, default_backbone
from prometar.cli.options import number_or_auto
from prometar.config.settings import (
    DEFAULT_OBJECTIVE,
    Config,
    absolute_paths,
    absolute_root,
    configure,
    parse_assignments,
)
from prometar.data.datasets.catalog import file_name, require_outside
from prometar.distributed.local_ray import configure_ray
from prometar.distributed.placement import Shares
from prometar.errors import UserError
from prometar.io.custom import is_reference
from prometar.io.stores import join, require_bucket
from tune.results.goals import parse_bounds
from tune.space.portfolio import SIZE, first_trials
from tune.space.spaces import EPOCHS, Space, known_spaces, load_space

if TYPE_CHECKING:
    from tune.results.schema import FinalTest
    from tune.stages.budget import Budget
    from tune.study import Place
    from tune.study_spec import StudySpec

AUTO = "auto"
METHOD, SPACE = "prometar", "recipe"
EMBEDDED = "textures"
EMBEDDED_TRIALS, EMBEDDED_EPOCHS = 24, 5
TRIALS = 40
_SWITCHES = ("from_records", "verbose")
_ALSO_OPTIONS = {
    "method": "method", "train.epochs": "epochs", "data.root": "data_root", "backbone.name": "backbone",
    "backbone.pretrained": "pretrained",
}  # fmt: skip
"""Settings that have an option of their own."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Options:
    """The options of `tune/search.py`, which explains each (`--help`), with `_` for `-`.

    Where an option takes several values, one alone need not be in a list; a path is as good as its text, an
    array as a list. None is a default that depends on other options.

    Args:
        space: As `--space`, or a `Space`. settings: `{"optim.lr": 0.01}`, or texts as `--set` takes them.
        at_least, at_most: As `base=80`. final_seeds: `auto`, or numbers. gpus_per_trial: `auto`, or a number.
        command: What the study's records are to say it was asked with (default None: this process's own).
    """

    dataset: str | Sequence[str] | None = None
    data_root: str | Path | None = None
    trials: int | None = None
    epochs: int | None = None
    space: str | InstanceOf[Space] = SPACE
    objective: str = DEFAULT_OBJECTIVE
    goals: str | Sequence[str] | None = None
    at_least: str | Sequence[str] | None = None
    at_most: str | Sequence[str] | None = None
    method: str | None = None
    backbone: str | None = None
    pretrained: str | None = None
    settings: str | Sequence[str] | Mapping[str, Any] | None = None
    study: str | None = None
    out: Path = Path("out")
    seed: int = 0
    seeds_per_trial: int = 1
    top: int = 3
    top_seeds: int = 2
    final_seeds: str | int | Sequence[int] = AUTO
    matters: float = 1.0
    sampler: str = "tpe"
    pruner: str | None = None
    portfolio: Annotated[int, Field(ge=0)] = SIZE
    enqueue: Path | Sequence[Path] | None = None
    warm_start: Path | Sequence[Path] | None = None
    val_per_class: int = 20
    max_hours: float | None = None
    trial_timeout: float | None = None
    files: str | None = None
    track: str | Sequence[str] | None = None
    storage: str | None = None
    max_concurrent: int | None = None
    cpus_per_trial: float = 1.0
    gpus_per_trial: str | float = AUTO
    address: str | None = None
    from_records: bool = False
    verbose: bool = False
    command: str | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, given: Any, info: ValidationInfo) -> Any:
        """Python counts true as 1, which nobody means."""
        given = plain(given)
        several = given if isinstance(given, list | tuple) else [given]
        if info.field_name not in _SWITCHES and any(isinstance(each, bool) for each in several):
            raise ValueError("Input should be neither true nor false")
        return given

    @property
    def datasets(self) -> tuple[str, ...]:
        if self.dataset is None:
            return (EMBEDDED,)
        if not (found := _many(self.dataset)):
            raise UserError("--dataset names no data set: leave it out for the embedded one")
        return found

    @property
    def embedded(self) -> bool:
        """Whether all data sets come with the package."""
        return SUITE.keys() >= set(self.datasets)

    @property
    def name(self) -> str:
        """The study's, below `out`."""
        return self.study or "-".join(map(file_name, self.datasets))

    def spec(self) -> "StudySpec":
        """What decides the study's result.

        Raises:
            UserError: a name or a number that makes no sense.
        """
        from tune.study_spec import StudySpec

        goals = _many(self.goals) or ("objective",)
        chosen, method = self._chosen(), METHOD if self.method is None else self.method
        config = absolute_paths(configure(method, {**self._defaults(), **chosen}))
        space = self._space(config, chosen.keys() | ({EPOCHS} if self.epochs is not None else set()))
        own = range(self.seed, self.seed + self.seeds_per_trial)
        return StudySpec(
            config=config,
            space=space,
            objective=self.objective,
            seed=self.seed,
            sampler=self.sampler,
            pruner=self.pruner or ("none" if len(goals) > 1 or EPOCHS in space.ranges else "hopeless"),
            goals=goals,
            bounds=parse_bounds(_many(self.at_least), _many(self.at_most)),
            val_per_class=self.val_per_class,
            trials=_first(self.trials, EMBEDDED_TRIALS if self.embedded else TRIALS),
            datasets=self.datasets,
            seeds_per_trial=self.seeds_per_trial,
            top=self.top,
            top_seeds=self.top_seeds,
            final_seeds=final_seeds_of(self.final_seeds, own),
            matters=self.matters if _is_auto(self.final_seeds) else None,
        )

    def _space(self, config: Config, chosen: Collection[str]) -> Space:
        """The space; one that comes with the project only as far as the method searches it."""
        if isinstance(self.space, Space):
            return self.space
        space = load_space(self.space)
        if self.space not in known_spaces():
            return space
        from tune.space.fitting import fitted

        return fitted(space, config, chosen)

    def _chosen(self) -> dict[str, Any]:
        """The settings that are given one by one, by dotted key."""
        given = self.settings
        chosen = dict(given) if isinstance(given, Mapping) else parse_assignments(list(_many(given)))
        for key, said in (
            ("data.name", "data sets are given by --dataset"),
            ("train.seed", "seed is given by --seed"),
        ):
            if key in chosen:
                raise UserError(f"--set {key}: a search's {said}")
        for key, option in _ALSO_OPTIONS.items():
            if key in chosen and getattr(self, option) is not None:
                raise UserError(f"--set {key}: --{option.replace('_', '-')} gives it too, leave out one")
        own = [name for name in self.datasets if is_reference(name)]
        for key in chosen:
            if key.startswith("data.args.") and len(own) > 1:
                raise UserError(
                    f"--set {key}: of {' '.join(own)} it would not reach all; "
                    "make it a default in the code of each"
                )
        return chosen

    def _defaults(self) -> dict[str, Any]:
        """The settings that other options decide, unless they are given."""
        backbone, pretrained = default_backbone(self.datasets, self.backbone, self.pretrained)
        asked = {
            "data.name": self.datasets[0],
            "data.root": absolute_root(str(self.data_root)) if self.data_root else None,
            "backbone.name": backbone,
            "backbone.pretrained": pretrained,
            "train.seed": self.seed,
        }
        if self.epochs is not None or self.embedded:
            asked["train.epochs"] = _first(self.epochs, EMBEDDED_EPOCHS)
        return asked

    def place(self, spec: "StudySpec") -> "Place":
        """Where the study of `spec` lies, what it may use and where it starts.

        Raises:
            UserError: a number that makes no sense, or a file to start from that is damaged.
        """
        from tune.results.writer import StudyFolder
        from tune.stages.warm_start import enqueued, to_learn_from
        from tune.study import Place

        if self.files:
            require_bucket(self.files)
        gpus = number_or_auto("--gpus-per-trial", str(self.gpus_per_trial))
        given, learned_from = list[Mapping[str, Any]](), tuple(map(Path, _many(self.warm_start)))
        folder = StudyFolder(self.out, self.name)
        to_learn_from(folder, learned_from, spec.space)  # before a folder is made
        for name in spec.names:
            require_outside(folder.path, name, spec.config.data.root)
        for path in _many(self.enqueue):
            given += [each for each in enqueued(path, spec.space) if each not in given]
        return Place(
            out=self.out,
            name=self.name,
            shares=Shares(self.max_concurrent, self.cpus_per_trial, gpus),
            storage=self.storage,
            files=join(absolute_root(self.files), self.name) if self.files else None,
            trackers=_many(self.track),
            address=self.address,
            max_hours=self.max_hours,
            trial_timeout=self.trial_timeout,
            enqueued=given,
            warm_start=learned_from,
            portfolio=first_trials(
                spec.space, spec.config, self.datasets, min(self.portfolio, spec.trials // 4)
            ),
            from_records=self.from_records,
            verbose=self.verbose,
            command=self.command,
        )


def options_of(given: Mapping[str, Any]) -> Options:
    """Options by name.

    Raises:
        UserError: an unknown name, or a value of another kind.

    Example:
        >>> options_of({"trials": 3}).trials
        3
    """
    try:
        return Options(**given)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        name = str(first["loc"][0])
        kinds = [each["msg"].removeprefix("Input should be ") for each in others if each["loc"][0] == name]
        if first["type"] == "unexpected_keyword_argument":
            raise UserError(f"a study has no option '{name}': `tune/search.py --help` lists them") from None
        said = first["msg"].removeprefix("Value error, ")
        wanted = ", or ".join([said, *dict.fromkeys(kinds)])  # of a union, each kind that it may be
        raise UserError(f"{name}: {wanted} (found {given[name]!r})") from None


def run(options: Options, *, alone: bool = False) -> "FinalTest":
    """Run or continue the study; see `tune.study.run_study`. `alone`: this process is for nothing else."""
    configure_ray(local=options.address is None, verbose=options.verbose)
    from tune.study import run_study

    spec = options.spec()
    return run_study(spec, options.place(spec))


def plan_of(options: Options) -> "tuple[StudySpec, Budget]":
    """What the study would search, and train at most; nothing is run, and nothing is written.

    Raises:
        UserError: it is asked for wrongly, or a data set is not there.
    """
    from tune.stages.budget import planned

    spec = options.spec()
    budget = planned(spec)
    options.place(spec)  # what is wrong with it
    return spec, budget


def describe_plan(options: Options) -> str:
    """`plan_of` in words; raises as it does."""
    from tune.results.writer import StudyFolder
    from tune.stages.budget import headline

    spec, budget = plan_of(options)
    ranges = [f"  {key}: {values}" for key, values in spec.space.describe().items()]
    study = f"study {StudyFolder(options.out, options.name).path}: {headline(spec)}"
    return "\n".join([study, str(budget), "searched:", *ranges, *_left_out(options, spec)])


def _left_out(options: Options, spec: "StudySpec") -> list[str]:
    """A line, where the method searches a part of a space that comes with the project."""
    if not isinstance(options.space, str):
        return []
    left = [key for key in load_space(options.space).ranges if key not in spec.space.ranges]
    why = f"without effect, or {spec.config.method}'s own value, or yours, is outside the range"
    return [f"left out ({why}): {', '.join(left)}"] if left else []


def final_seeds_of(given: str | int | Sequence[int], searched: range) -> tuple[int, ...]:
    """The seeds given, or as many as a comparison takes at most, none of them the search's own.

    Example:
        >>> final_seeds_of("auto", range(2))[:3], final_seeds_of("7, 8", range(1))
        ((2, 3, 4), (7, 8))
    """
    from tune.stages.sequential import LOOKS

    if isinstance(given, int):
        return (given,)
    if not isinstance(given, str):
        return tuple(given)
    if _is_auto(given):
        fresh = chain(range(1, searched.start), count(max(1, searched.stop)))
        return tuple(islice(fresh, LOOKS[-1].pairs))
    try:
        return tuple(int(word) for word in given.replace(",", " ").split())
    except ValueError:
        raise UserError(f"--final-seeds '{given}': expected auto, or numbers such as '1 2 3'") from None


def plain(given: Any) -> Any:
    """A path as its text, an array as its numbers.

    Example:
        >>> plain(Path("mine.yaml")), plain(3)
        ('mine.yaml', 3)
    """
    if isinstance(given, os.PathLike):
        return os.fspath(given)
    return given.tolist() if hasattr(given, "tolist") else given


def _is_auto(given: Any) -> bool:
    return isinstance(given, str) and given.strip() == AUTO


def _first(given: int | None, default: int) -> int:
    return default if given is None else given


def _many(given: Any) -> tuple[Any, ...]:
    """One value, several, or none, as a tuple."""
    if given is None:
        return ()
    return (given,) if isinstance(given, str | Path) else tuple(given)
