"""Configuration of one run: frozen and typed, unknown keys are rejected.

The sections of a method are its parts themselves (`prometar.methods`), selected by `kind`. Defaults are the
released settings of ProMetaR (CVPR 2024), the paper's code at c907bdb. A configuration that names another
method starts from that method's recipe.
"""

import os
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from prometar.config.recipes import is_file, recipe
from prometar.errors import UserError
from prometar.io.custom import complete_args, is_reference
from prometar.io.files import require_utf8, resolve_path
from prometar.io.plain_data import PlainData, leaf_types, problems_of
from prometar.io.yamltext import parse_yaml, read_yaml
from prometar.methods.composition import Sections
from prometar.methods.part import TAGS, Custom, Part

Settings = dict[str, Any]
"""Plain data of a configuration, by section or by dotted key."""

DEFAULT_OBJECTIVE = "drift"
"""Default objective of a search."""


class DataConfig(PlainData):
    """Training data: `shots` images per class, drawn with the run's seed. `args`: of a custom loader."""

    name: str = "textures"
    root: str | None = None
    shots: int = Field(default=16, ge=1, le=1_000_000)
    args: dict[str, JsonValue] = Field(default={}, exclude_if=lambda args: not args)

    @model_validator(mode="after")
    def _args_of_a_custom_loader(self) -> Self:
        if self.args and not self.reference:
            raise ValueError(f"args are settings of a custom loader, and {self.name} is built in")
        return self

    @property
    def reference(self) -> str | None:
        """`package.module:Name` of a custom loader, or None."""
        return self.name if is_reference(self.name) else None


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


class Config(Sections):
    """One run, complete. `Config()` is ProMetaR at its released settings on the embedded default.

    `Config(method=NAME)` is that method at its published settings; what is given besides overrides them.

    Raises:
        UserError: an unknown method.

    Example:
        >>> Config(method="coop").train.epochs
        200
    """

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    backbone: BackboneConfig = BackboneConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, tree: object) -> object:
        if not isinstance(tree, Mapping):
            return tree
        method = tree.get("method", cls.model_fields["method"].default)
        if not isinstance(method, str):
            return tree
        if not is_file(method):
            return _completed(tree, method, recipe(method).settings)
        # Its settings were filled in when the file was read, and are stored in the configuration.
        missing = sorted(cls.model_fields.keys() - tree.keys())
        if missing:
            raise ValueError(
                f"method {method} is a recipe file, and section {missing[0]} is missing: use --method"
            )
        return tree

    def override(self, values: Mapping[str, object]) -> "Config":
        """Return a copy with dotted keys replaced.

        Another `method` brings its own published settings; data, backbone and seed stay. Another kind of a
        part keeps the settings that both kinds share. Settings that only other kinds have are dropped.

        Raises:
            UserError: an unknown key, or a value that its field rejects.

        Example:
            >>> Config().override({"regularizer.text_weight": 10}).regularizer.text_weight
            10.0
        """
        start, values = self, dict(values)
        method = str(values.pop("method", self.method))
        if method != self.method:
            kept = {"data": self.data, "backbone": self.backbone, "train": {"seed": self.train.seed}}
            chosen = recipe(method)
            start = parse(_completed(kept, chosen.name, chosen.settings), where=f"method {method}")
        tree = start.model_dump(mode="json")
        for section, changes in _by_section(values).items():
            args = {key[5:]: value for key, value in changes.items() if key.startswith("args.")}
            chosen = changes.get(_chooser(section), tree[section].get(_chooser(section)))
            fields = _fields(section, chosen)
            tree[section] = _merged(section, tree[section], {k: v for k, v in changes.items() if k in fields})
            if args:
                tree[section]["args"] = {**tree[section].get("args", {}), **args}
        return parse(tree, where="settings")

    @property
    def own(self) -> dict[str, str]:
        """References of custom components, `package.module:Name`, by section."""
        found = {name: part.reference for name, part in self if isinstance(part, Custom)}
        return found | ({"data": self.data.reference} if self.data.reference else {})

    def completed(self) -> "Config":
        """Return a copy with all settings of custom components, with defaults for those not given.

        This imports their modules. Call it only for what the user has requested.

        Raises:
            UserError: a component cannot be loaded, or rejects its settings.
        """
        if not self.own:
            return self
        tree = self.model_dump(mode="json")
        for name, reference in self.own.items():
            tree[name]["args"] = complete_args(reference, getattr(self, name).args)
        return parse(tree, where="settings")

    def refuse_own(self, where: str, *, trusted: bool = False) -> "Config":
        """Return this configuration, read from `where`, which somebody else may have made.

        Raises:
            UserError: it names a module, and the user has not said that it may be imported.
        """
        if self.own and not trusted:
            raise UserError(
                f"{where} names code that is not prometar's ({', '.join(self.own.values())}): read it, and "
                "pass --trust-parts to have it run (in Python, trust_parts=True)"
            )
        return self

    def flat(self) -> Settings:
        """Every setting by its dotted key, as plain data.

        Example:
            >>> Config().flat()["train.epochs"]
            10
        """
        return flatten(self.model_dump(mode="json"))


def _completed(
    tree: Mapping[str, object], method: str, settings: Mapping[str, Mapping[str, object]]
) -> Settings:
    """Return a configuration's plain data with a recipe's settings where `tree` has none of its own."""
    whole = {**settings, **tree, "method": method}
    for section in Config.model_fields.keys() - {"method"}:
        given = tree.get(section, {})
        if isinstance(given, Mapping):
            default = getattr(Config.model_fields[section].default, _chooser(section), None)
            base = _merged(section, {_chooser(section): default}, settings.get(section, {}))
            whole[section] = _merged(section, base, given)
    return whole


def _merged(section: str, base: Mapping[str, object], given: Mapping[str, object]) -> Settings:
    """Return `given` over `base`, of which only the settings remain that the chosen kind has."""
    chooser = _chooser(section)
    chosen = given.get(chooser, base.get(chooser))
    fields, same = _fields(section, chosen), chosen == base.get(chooser)
    kept = {key: value for key, value in base.items() if key in fields and (same or key != "args")}
    return {**kept, **given}


def _by_section(values: Mapping[str, object]) -> dict[str, Settings]:
    """Return dotted settings by section.

    Raises:
        UserError: an unknown setting, such as a whole section.
    """
    grouped: dict[str, Settings] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section not in Config.model_fields:
            raise UserError(f"unknown setting '{key}': the sections are {', '.join(Config.model_fields)}")
        if not (is_setting(key) or name.startswith("args.")):
            known = dict.fromkeys(field for each in _models(section).values() for field in each.model_fields)
            raise UserError(f"unknown setting '{key}': {section} has {', '.join(known)}")
        grouped.setdefault(section, {})[name] = value
    return grouped


def _chooser(section: str) -> str:
    """Return the setting that selects a section's kind: of a part, or of a dataset's loader."""
    default = Config.model_fields[section].default
    return default.CHOOSER if isinstance(default, Part) else "name"


@cache
def _tags() -> frozenset[str]:
    """Return the names that pydantic puts into the place of an error for the halves and kinds of a union."""
    return TAGS | {kind for section in Config.model_fields for kind in _models(section) if kind}


def is_setting(key: str) -> bool:
    """Return whether a configuration may have the dotted setting: of any kind of a part.

    Example:
        >>> [is_setting(key) for key in ("averager.std", "averager.sdt")]
        [True, False]
    """
    section, _, name = key.partition(".")
    return section in Config.model_fields and any(
        name in each.model_fields for each in _models(section).values()
    )


@cache
def _models(section: str) -> dict[str | None, type[BaseModel]]:
    """Return the models of a section by the kind of its part. None: custom components, and other sections."""
    found: dict[str | None, type[BaseModel]] = {}
    for model in leaf_types(Config.model_fields[section].annotation):
        if isinstance(model, type) and issubclass(model, BaseModel):
            chooser = model.model_fields.get(_chooser(section))
            kinds = get_args(chooser.annotation) if chooser else ()
            found |= dict.fromkeys(kinds or (None,), model)
    return found


def _fields(section: str, chosen: object) -> Collection[str]:
    """Return the settings of a kind, or of custom components for an unknown kind."""
    models = _models(section)
    return models.get(chosen if isinstance(chosen, str) else None, models[None]).model_fields


def flatten(tree: Mapping[str, object], prefix: str = "") -> Settings:
    """Values by dotted key.

    Example:
        >>> flatten({"optim": {"lr": 0.1}, "method": "coop"})
        {'optim.lr': 0.1, 'method': 'coop'}
    """
    flat: Settings = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(then: Mapping[str, object], now: Mapping[str, object]) -> str:
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


def parse(tree: object, *, where: str) -> Config:
    """A configuration from plain data; `where` names the source in the message.

    Raises:
        UserError: not a mapping, an unknown key, or a refused value.
    """
    try:
        return Config.model_validate(tree)
    except UnicodeEncodeError:  # half a surrogate pair, which YAML can write as an escape
        raise UserError(f"{where}: the text of a setting is not UTF-8") from None
    except ValidationError as error:
        raise UserError(f"{where}: {problems_of(error, without=_tags())}") from None


def load_config(path: Path) -> Config:
    """Read a YAML configuration.

    Raises:
        UserError: the file is missing, is not YAML, or contains unknown keys or invalid values.
    """
    return parse(read_yaml(path) or {}, where=str(path))


def dump_config(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def parse_assignments(assignments: list[str]) -> Settings:
    """`["optim.lr=0.01"]` as `{"optim.lr": 0.01}`; values are read as YAML scalars.

    Raises:
        UserError: an entry without '=' or with a value that is not YAML.
    """
    values: Settings = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set {text}: expected key=value, e.g. --set optim.lr=0.01")
        values[key.strip()] = parse_yaml(raw, where=f"--set {key}: the value")
    return values


def configure(method: str, overrides: Mapping[str, object] | None = None) -> Config:
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
    return root if "://" in root else str(resolve_path(root))


def absolute_paths(config: Config) -> Config:
    """The configuration with paths of data and weights that mean the same from every folder."""
    changes: Settings = {}
    if config.data.root is not None:
        changes["data.root"] = absolute_root(config.data.root)
    weights = config.backbone.pretrained
    if weights is not None and os.path.isfile(weights):
        changes["backbone.pretrained"] = str(resolve_path(weights))
    return config.override(changes) if changes else config
