"""Configuration of one run: frozen, typed, unknown keys refused.

A configuration stops at the builders (`methods.build`, `data.catalog.open_dataset`, ...): parts take plain
keyword arguments. Defaults are the released settings of ProMetaR (CVPR 2024), the paper's code at c907bdb; a
configuration that names another method starts from that method's recipe.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from prometar.config.recipes import is_file, recipe
from prometar.errors import UserError
from prometar.io.custom import completed, is_reference
from prometar.io.files import require_utf8, resolved
from prometar.io.plain_data import PlainData, problems_of
from prometar.io.yamltext import parse_yaml, read_yaml

DEFAULT_OBJECTIVE = "drift"
"""What a search uses if nothing is said."""


class Section(PlainData):
    """A section that chooses a part: one of `KINDS`, or `package.module:Name` of one's own, with its `args`.

    `CHOOSER` is the field that chooses. A part is not looked for here: see `Config.completed`.
    """

    CHOOSER: ClassVar[str] = "kind"
    KINDS: ClassVar[tuple[str, ...]] = ()

    args: dict[str, JsonValue] = Field(default={}, exclude_if=lambda args: not args)

    @model_validator(mode="after")
    def _known(self) -> "Section":
        built_in = self.chosen in self.KINDS
        if not built_in and self.KINDS and not is_reference(self.chosen):
            known = ", ".join(self.KINDS)
            raise ValueError(f"{self.CHOOSER} '{self.chosen}' is none of {known}, and no package.module:Name")
        if built_in and self.args:
            raise ValueError(f"args are settings of a part of your own, and {self.chosen} is built in")
        return self

    @property
    def chosen(self) -> str:
        return str(getattr(self, self.CHOOSER))

    @property
    def reference(self) -> str | None:
        """`package.module:Name` of the user's own part; None of a built-in one."""
        return self.chosen if is_reference(self.chosen) else None


class DataConfig(Section):
    """What is learned from: `shots` images a class, drawn with the run's seed."""

    CHOOSER: ClassVar[str] = "name"

    name: str = "textures"
    root: str | None = None
    shots: int = Field(default=16, ge=1, le=1_000_000)


class AugmentConfig(PlainData):
    """Image augmentation of the training images (RandomResizedCrop, flip, colour jitter)."""

    crop_scale_min: float = Field(default=0.08, gt=0, le=1)
    crop_scale_max: float = Field(default=1.0, gt=0, le=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    jitter: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _ordered(self) -> "AugmentConfig":
        if self.crop_scale_min > self.crop_scale_max:
            raise ValueError(f"crop_scale_min {self.crop_scale_min} is above crop_scale_max")
        return self


class BackboneConfig(PlainData):
    """An open_clip model name (or `mini`) and its weights: an open_clip tag or a local .safetensors file.

    `precision`: of the weights and the towers. Prompts, gate, losses and optimizers are in at least fp32.
    """

    name: str = "mini"
    pretrained: str | None = None
    precision: Literal["fp64", "fp32", "bf16", "fp16"] = "fp32"


class PromptsConfig(Section):
    """Learnable tokens: `*_length` in each of the first `*_depth` layers of a tower; depth 0 is none.

    `coupled`: linear maps of the text's tokens are the vision tower's, which so has the text's length and
    depth. `conditional`: text tokens of the first layer alone, which a net shifts by the image's frozen
    features. `frozen_text` is what a class is called where no text context is learned: the data set's own
    template, "<init> <name>.", or the mean of 60 templates. `init_padding`: a text context that is longer
    than its words starts at random, or as zeros and behind them the words. `reduction`: how many times
    narrower than the features the conditional net's hidden layer is.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("none", "independent", "coupled", "conditional")

    kind: str = "independent"
    text_length: int = Field(default=4, ge=1, le=64)
    text_depth: int = Field(default=9, ge=0)
    vision_length: int = Field(default=4, ge=1, le=128)
    vision_depth: int = Field(default=9, ge=0)
    init: str = "a photo of a"
    init_std: float = Field(default=0.02, ge=0)
    init_padding: Literal["random", "zeros"] = "random"
    reduction: int = Field(default=16, ge=1)
    frozen_text: Literal["template", "init", "ensemble"] = "template"


class RegularizerConfig(Section):
    """Distance of prompted from frozen features; a weight of 0 switches that part off, `none` all of them.

    `logits_weight`: of the divergence of the class probabilities. `teacher`: the frozen text features are
    the mean of 60 templates, or those of the data set's own: as it is, as a sentence about a photo, or with
    the class name last.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("none", "l1", "l2", "cosine")

    kind: str = "l1"
    text_weight: float = Field(default=50.0, ge=0)
    image_weight: float = Field(default=20.0, ge=0)
    logits_weight: float = Field(default=0.0, ge=0)
    teacher: Literal["ensemble", "template", "photo", "name_last"] = "ensemble"


class ModulatorConfig(Section):
    """How the regularizer's gradient joins the task's: g_task + m * g_reg with m learned, constant, or 1.

    `projection`: it takes out `share` of the task gradient's part against it, and adds nothing else.
    """

    KINDS: ClassVar[tuple[str, ...]] = ("add", "constant", "gate", "projection")

    kind: str = "gate"
    value: float = Field(default=0.5, ge=0, le=1)
    share: float = Field(default=1.0, ge=0, le=1)
    reduction: int = Field(default=8, ge=1)


class InnerConfig(Section):
    """The inner step of the meta phase; kind `none` switches the meta phase off."""

    KINDS: ClassVar[tuple[str, ...]] = ("none", "sgd")

    kind: str = "sgd"
    lr: float = Field(default=5e-4, ge=0, le=1e30)
    order: Literal["first", "second"] = "second"
    outer_weight: float = Field(default=5e-4, ge=0)


class TaskConfig(Section):
    """Task augmentation of the query set, with lam ~ Beta(mixup_alpha, mixup_beta)."""

    CHOOSER: ClassVar[str] = "augmentation"
    KINDS: ClassVar[tuple[str, ...]] = ("none", "feature_mixup", "input_mixup", "cutmix")

    augmentation: str = "feature_mixup"
    mixup_alpha: float = Field(default=0.5, gt=0)
    mixup_beta: float = Field(default=0.5, gt=0)


class AveragerConfig(Section):
    """Which prompts are tested: the last epoch's, or a Gaussian average; mean, std as shares of the run."""

    KINDS: ClassVar[tuple[str, ...]] = ("last", "gaussian")

    kind: str = "last"
    mean: float = Field(default=0.75, ge=0, le=100)
    std: float = Field(default=0.05, ge=1e-4)


class OptimConfig(PlainData):
    """SGD with one constant warm-up epoch, then a cosine; the gate has its own rate and schedule.

    `gate_schedule`: `released` keeps the gate at its warm-up rate for the whole run, as the released code
    does (its schedule is built but never stepped); `configured` is the schedule that its settings describe.
    """

    lr: float = Field(default=0.0025, ge=0, le=1e30)
    warmup_lr: float = Field(default=1e-5, ge=0, le=1e30)
    gate_lr: float = Field(default=2.5e-4, ge=0, le=1e30)
    gate_warmup_lr: float = Field(default=1e-6, ge=0, le=1e30)
    gate_schedule: Literal["released", "configured"] = "released"
    warmup_epochs: int = Field(default=1, ge=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=5e-4, ge=0, le=1e30)


class TrainConfig(PlainData):
    """Epochs, batch size and seed."""

    epochs: int = Field(default=10, ge=1, le=100_000)
    batch_size: int = Field(default=4, ge=1, le=65_536)
    seed: int = Field(default=1, ge=0, lt=2**32)


class Config(PlainData):
    """One run, complete. `Config()` is ProMetaR at its released settings on the embedded default.

    `Config(method=NAME)` is that method at its published settings; what is given besides overrides them.

    Raises:
        UserError: an unknown method.

    Example:
        >>> Config(method="coop").train.epochs
        200
    """

    method: str = "prometar"
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    backbone: BackboneConfig = BackboneConfig()
    prompts: PromptsConfig = PromptsConfig()
    regularizer: RegularizerConfig = RegularizerConfig()
    modulator: ModulatorConfig = ModulatorConfig()
    inner: InnerConfig = InnerConfig()
    task: TaskConfig = TaskConfig()
    averager: AveragerConfig = AveragerConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping):
            return tree
        method = tree.get("method", cls.model_fields["method"].default)
        if not isinstance(method, str):
            return tree
        if not is_file(method):
            return recipe(method).complete(tree)
        # Its settings were filled in where the file was read, and are all that travels.
        missing = sorted(cls.model_fields.keys() - tree.keys())
        if missing:
            raise ValueError(
                f"method {method} is a recipe's file, and there is no section {missing[0]}: use --method"
            )
        return tree

    def override(self, values: Mapping[str, Any]) -> "Config":
        """A copy with dotted keys replaced.

        Another `method` brings its own published settings, whatever the old ones were; data, backbone and
        seed stay. The other keys override them.

        Raises:
            UserError: an unknown key or a value that its field refuses.

        Example:
            >>> Config().override({"regularizer.text_weight": 10}).regularizer.text_weight
            10.0
        """
        start, values = self, dict(values)
        method = values.pop("method", self.method)
        if method != self.method:
            kept = {"data": self.data, "backbone": self.backbone, "train": {"seed": self.train.seed}}
            empty: dict[str, Any] = {name: {} for name in Config.model_fields if name != "method"}
            start = parse(empty | recipe(method).complete(kept), where=f"method {method}")
        tree = start.model_dump(mode="json")
        for key in sorted(values, key=_is_arg):  # another part first, then its settings
            if _is_arg(key):
                _set_arg(tree, key, values[key])
            else:
                _set(tree, key, values[key])
        return parse(tree, where="settings")

    @property
    def own(self) -> dict[str, str]:
        """Parts that are the user's own: `package.module:Name` by the section that chooses them."""
        return {name: part for name, section in _sections(self) if (part := section.reference) is not None}

    def completed(self) -> "Config":
        """A copy with all settings of the user's own parts, by their defaults where they are not given.

        This imports their modules: call it for what the user himself has asked for.

        Raises:
            UserError: a part that cannot be found, or does not take its settings.
        """
        if not self.own:
            return self
        tree = self.model_dump(mode="json")
        for name, section in _sections(self):
            if section.reference is not None:
                tree[name]["args"] = completed(section.reference, section.args)
        return parse(tree, where="settings")

    def refuse_own(self, where: str, *, trusted: bool = False) -> "Config":
        """This configuration, read from what somebody else may have made: `where`.

        Raises:
            UserError: it names a module, and the user has not said that it may be imported.
        """
        if self.own and not trusted:
            raise UserError(
                f"{where} names code that is not prometar's ({', '.join(self.own.values())}): read it, and "
                "pass --trust-parts to have it run (in Python, trust_parts=True)"
            )
        return self

    def flat(self) -> dict[str, Any]:
        """Every setting by its dotted key, as plain data.

        Example:
            >>> Config().flat()["train.epochs"]
            10
        """
        return flatten(self.model_dump(mode="json"))


def _sections(config: Config) -> list[tuple[str, Section]]:
    return [(name, section) for name, section in config if isinstance(section, Section)]


def _is_arg(key: str) -> bool:
    return key.split(".")[1:2] == ["args"]


def _set_arg(tree: dict[str, Any], key: str, value: Any) -> None:
    section, _, name = key.partition(".args")
    if section not in choosers():
        raise UserError(f"unknown setting '{key}': only sections that choose a part have args")
    if not name.removeprefix(".").isidentifier():
        raise UserError(f"'{key}': set one of the part's settings, {section}.args.NAME")
    tree[section].setdefault("args", {})[name.removeprefix(".")] = value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "method": "coop"})
        {'optim.lr': 0.1, 'method': 'coop'}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The settings in which two flat mappings differ, six at most; "" where they are the same.

    Example:
        >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
        'b: 2 then, 3 now'
    """
    changed = [
        f"{key}: {then.get(key, 'absent')} then, {now.get(key, 'absent')} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    more = [f"and {len(changed) - 6} more"] if len(changed) > 6 else []
    return "; ".join(changed[:6] + more)


def _set(tree: dict[str, Any], key: str, value: Any) -> None:
    group, node, parts = tree, tree, key.split(".")
    for depth, part in enumerate(parts):
        if not isinstance(node, dict) or part not in node:
            here = ".".join(parts[:depth]) or "the configuration"
            known = ", ".join(node) if isinstance(node, dict) else "no keys"
            raise UserError(f"unknown setting '{key}': {here} has {known}")
        group, node = node, node[part]
    if isinstance(node, dict):
        raise UserError(f"'{key}' is a group of settings: set one of {', '.join(node)}")
    if node != value and key in choosers().values():
        group.pop("args", None)  # another part has other settings
    group[parts[-1]] = value


@cache
def choosers() -> Mapping[str, str]:
    """The settings that choose parts, by section: {"regularizer": "regularizer.kind", ...}."""
    return {name: f"{name}.{section.CHOOSER}" for name, section in _sections(Config())}


def parse(tree: Any, *, where: str) -> Config:
    """A configuration from plain data; `where` names the source in the message.

    Raises:
        UserError: not a mapping, an unknown key, or a refused value.
    """
    if not isinstance(tree, dict):
        raise UserError(f"{where}: expected a mapping of settings, found {type(tree).__name__}")
    try:
        return Config.model_validate(tree)
    except UnicodeEncodeError:  # half a surrogate pair, which YAML can write as an escape
        raise UserError(f"{where}: the text of a setting is not UTF-8") from None
    except ValidationError as error:
        raise UserError(f"{where}: {problems_of(error)}") from None


def load_config(path: Path) -> Config:
    """Read a YAML configuration.

    Raises:
        UserError: the file is missing, is not YAML, or holds unknown keys or refused values; it is a recipe.
    """
    tree = read_yaml(path) or {}
    if isinstance(tree, dict) and "settings" in tree:
        raise UserError(f"{path} is a recipe: give it with --method")
    return parse(tree, where=str(path))


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_assignments(assignments: list[str]) -> dict[str, Any]:
    """`["optim.lr=0.01"]` as `{"optim.lr": 0.01}`; values are read as YAML scalars.

    Raises:
        UserError: an entry without '=' or with a value that is not YAML.
    """
    values: dict[str, Any] = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set {text}: expected key=value, e.g. --set optim.lr=0.01")
        value = parse_yaml(raw, where=f"--set {key}: the value")
        # What YAML takes for a number, a truth value or a date may be meant as text: prompts.init=1.
        is_other = value is not None and not isinstance(value, str | list | dict)
        if _takes_text(key.strip()):
            values[key.strip()] = raw.strip() if is_other else value
        else:
            values[key.strip()] = as_number(value)
    return values


def _takes_text(key: str) -> bool:
    """Whether a dotted setting holds any text."""
    kind: Any = Config
    for part in key.split("."):
        fields = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else {}
        if part not in fields:
            return False
        kind = fields[part].annotation
    return kind is str or kind == str | None


def configure(method: str, overrides: Mapping[str, Any] | None = None) -> Config:
    """A method at its published settings, with dotted keys replaced: what every command starts from.

    Args:
        method: A name, or a recipe of one's own, FILE.yaml.
        overrides: Settings by dotted key.
    Raises:
        UserError: an unknown method, key or part, or a value that its field refuses.

    Example:
        >>> configure("maple", {"data.name": "dtd"}).optim.lr
        0.0035
    """
    return Config().override({"method": method, **(overrides or {})}).completed()


def absolute_root(root: str) -> str:
    """A data root that means the same from every folder; URIs (s3://...) are kept.

    Raises:
        UserError: it is not UTF-8, or a circle of links.

    Example:
        >>> absolute_root("s3://bucket/data")
        's3://bucket/data'
    """
    require_utf8(root)
    return root if "://" in root else str(resolved(root))


def absolute_paths(config: Config) -> Config:
    """The configuration with paths of data and weights that mean the same from every folder."""
    changes: dict[str, Any] = {}
    if config.data.root is not None:
        changes["data.root"] = absolute_root(config.data.root)
    weights = config.backbone.pretrained
    if weights is not None and os.path.isfile(weights):
        changes["backbone.pretrained"] = str(resolved(weights))
    return config.override(changes) if changes else config


def as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text; a user means the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
