"""Configuration of one run. Configurations are immutable and reject unknown keys.

Each component of a method (`prometar.methods`) has a section, which selects its kind. The defaults
are those of ProMetaR's published code (CVPR 2024, commit c907bdb). Recipes change them for other methods.
"""

import os
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, Field, JsonValue, ValidationError, model_validator

from prometar.config.recipes import is_recipe_file, recipe
from prometar.errors import UserError
from prometar.io.custom import complete_args, is_custom
from prometar.io.files import require_recordable, resolve_path
from prometar.io.strict_model import StrictModel, leaf_types, problems_of
from prometar.io.yamltext import dump_yaml, parse_yaml, read_yaml
from prometar.methods.composition import MethodConfig
from prometar.methods.section import TAG_NAMES, ComponentSection, CustomSection

ConfigData = dict[str, Any]
"""Plain data of a configuration: nested by section, or flat by dotted key."""


class DataConfig(StrictModel):
    """Training data: `shots` images per class, sampled with `train.seed`. `args` are for a custom loader."""

    name: str = "textures"
    root: str | None = None
    shots: int = Field(default=16, ge=1, le=1_000_000)
    args: dict[str, JsonValue] = Field(default={}, exclude_if=lambda args: not args)

    @model_validator(mode="after")
    def _reject_args_of_built_in_datasets(self) -> Self:
        if self.args and not self.reference:
            raise ValueError(f"args require a custom loader, but {self.name} is built in")
        return self

    @property
    def reference(self) -> str | None:
        """Reference to a custom loader, `package.module:Name`, or None."""
        return self.name if is_custom(self.name) else None


class AugmentConfig(StrictModel):
    """Augmentation of training images: RandomResizedCrop, probability of a flip, amount of color jitter.

    With two `views`, each image is augmented twice. The regularizer compares the features of the first view
    with those that the frozen CLIP has of the second.
    """

    crop_scale_min: float = Field(default=0.08, gt=0, le=1)
    crop_scale_max: float = Field(default=1.0, gt=0, le=1)
    flip: float = Field(default=0.5, ge=0, le=1)
    jitter: float = Field(default=0.0, ge=0, le=1)
    views: Literal[1, 2] = 1

    @model_validator(mode="after")
    def _require_ordered_crop_scales(self) -> Self:
        if self.crop_scale_min > self.crop_scale_max:
            raise ValueError(f"crop_scale_min {self.crop_scale_min} exceeds crop_scale_max")
        return self


class BackboneConfig(StrictModel):
    """An open_clip model and its `pretrained` weights (tag or .safetensors file), or the embedded `mini`.

    `precision` applies to the towers. Prompts, the modulator's gate, losses and optimizers use at least fp32.
    `tf32`: float32 whose matrix products are computed in TF32 on NVIDIA GPUs. On other devices, it is `fp32`.
    """

    name: str = "mini"
    pretrained: str | None = None
    precision: Literal["fp64", "fp32", "tf32", "bf16", "fp16"] = "fp32"


class TrainConfig(StrictModel):
    """Epochs, batch size and seed."""

    epochs: int = Field(default=10, ge=1, le=100_000)
    batch_size: int = Field(default=4, ge=1, le=65_536)
    seed: int = Field(default=1, ge=0, lt=2**32)


class Config(MethodConfig):
    """Complete configuration of one run.

    `Config(method=M)` has the published settings of the built-in method M (default: ProMetaR). Other
    arguments override these settings. The default dataset is `textures`.

    Raises:
        UserError: the method is unknown.

    Example:
        >>> Config(method="coop").train.epochs
        200
    """

    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    backbone: BackboneConfig = BackboneConfig()
    train: TrainConfig = TrainConfig()

    @model_validator(mode="before")
    @classmethod
    def _start_from_the_recipe(cls, tree: object) -> object:
        if not isinstance(tree, Mapping):
            return tree
        method = tree.get("method", cls.model_fields["method"].default)
        if not isinstance(method, str | int | float):
            return tree
        if not is_recipe_file(method := str(method)):
            return _with_recipe(tree, method, recipe(method).settings)
        # A recipe file is not read here: a configuration with its name must contain all settings.
        missing = sorted(cls.model_fields.keys() - tree.keys())
        if missing:
            raise ValueError(f"Section {missing[0]} is missing. To start from recipe {method}, use --method.")
        return tree

    def override(self, values: Mapping[str, object], *, where: str = "settings") -> "Config":
        """Return a copy with other values for dotted keys. Messages for invalid values start with `where`.

        If `method` changes, its recipe replaces all settings except data, backbone and seed. Settings
        that the selected kind does not have are ignored in `values`, and dropped if the kind changes.

        Raises:
            UserError: a key is unknown, or a value is invalid.

        Example:
            >>> Config().override({"regularizer.text_weight": 10}).regularizer.text_weight
            10.0
        """
        start, values = self, dict(values)
        method = str(values.pop("method", self.method))
        if method != self.method:
            unchanged = {"data": self.data, "backbone": self.backbone, "train": {"seed": self.train.seed}}
            new = recipe(method)
            start = parse_config(_with_recipe(unchanged, new.name, new.settings), where=f"method {method}")
        tree = start.model_dump(mode="json")
        for section, changes in _by_section(values).items():
            args = {key.removeprefix("args."): v for key, v in changes.items() if key.startswith("args.")}
            kind = changes.get(_kind_field(section), tree[section].get(_kind_field(section)))
            fields = _fields(section, kind)
            tree[section] = _merged(section, tree[section], {k: v for k, v in changes.items() if k in fields})
            if args:
                tree[section]["args"] = {**tree[section].get("args", {}), **args}
        return parse_config(tree, where=where)

    @property
    def custom_components(self) -> dict[str, str]:
        """References to custom components, `package.module:Name`, by section."""
        found = {name: section.reference for name, section in self if isinstance(section, CustomSection)}
        return found | ({"data": self.data.reference} if self.data.reference else {})

    def with_defaults(self) -> "Config":
        """Return a copy with the default settings of custom components filled in.

        This imports the components' modules, so only call it if the user requested these components.

        Raises:
            UserError: a component cannot be imported, or rejects its settings.
        """
        if not self.custom_components:
            return self
        tree = self.model_dump(mode="json")
        for section, reference in self.custom_components.items():
            tree[section]["args"] = complete_args(reference, getattr(self, section).args)
        return parse_config(tree, where="settings")

    def require_trusted(self, where: str, *, trusted: bool = False) -> "Config":
        """Return the configuration if its custom components may be imported.

        Raises:
            UserError: it has custom components, and `trusted` is False. The message starts with `where`.
        """
        if self.custom_components and not trusted:
            raise UserError(
                f"{where} uses custom components ({', '.join(self.custom_components.values())}). Review "
                "their code, then pass --trust-code (in Python, trust_code=True)."
            )
        return self

    @staticmethod
    def require_used(keys: Iterable[str], configs: Iterable["Config"], name: str) -> None:
        """Raise a UserError for the first key, given with --set, that none of the configurations has."""
        used = {key for config in configs for key in config.flat()}
        if unused := [key for key in keys if key not in used and ".args" not in key]:
            raise UserError(f"--set {unused[0]} does not apply to {name}. Also set the kind.")

    def flat(self) -> ConfigData:
        """Return all settings as plain data by dotted key."""
        return flatten(self.model_dump(mode="json"))

    def identity(self) -> ConfigData:
        """Return all settings that determine results. The images may move, so `data.root` is not one.

        Settings that version 0.2 did not have are left out if they have their default values, and sections
        have the order of version 0.2. Thus runs and studies of that version keep their digests.
        """
        tree = self.model_dump(mode="json")
        tree |= {section: tree.pop(section) for section in ("data", "augment", "backbone", "optim", "train")}
        return {
            key: value
            for key, value in flatten(tree).items()
            if key != "data.root" and _ADDED_DEFAULTS.get(key, _ABSENT) != value
        }


_ABSENT = object()
_ADDED_DEFAULTS: dict[str, object] = {
    "optim.kind": "sgd",
    "optim.prompts_lr_factor": 1.0,
    "optim.adapters_lr_factor": 1.0,
    "optim.features_lr_factor": 1.0,
    "optim.logits_lr_factor": 1.0,
    "adapters.kind": "none",
    "features.kind": "none",
    "logits.kind": "cosine",
    "augment.views": 1,
    "regularizer.texts": None,
    "regularizer.draw": False,
}
"""Settings that were added after version 0.2, with the values that give the results of that version."""


def _with_recipe(
    tree: Mapping[str, object], method: str, settings: Mapping[str, Mapping[str, object]]
) -> ConfigData:
    """Return `tree` with missing settings filled in from the recipe, as plain data."""
    result = {**settings, **tree, "method": method}
    for section in Config.model_fields.keys() - {"method"}:
        given = tree.get(section, {})
        if isinstance(given, Mapping):
            default = getattr(Config.model_fields[section].default, _kind_field(section), None)
            base = _merged(section, {_kind_field(section): default}, settings.get(section, {}))
            result[section] = _merged(section, base, given)
    return result


def _merged(section: str, base: Mapping[str, object], given: Mapping[str, object]) -> ConfigData:
    """Return `base` updated with `given`. If the kind changes, drop `args` and what the new kind lacks."""
    field, base_kind = _kind_field(section), base.get(_kind_field(section))
    kind = given.get(field, base_kind)
    fields, same = _fields(section, kind), kind == base_kind
    kept = {key: value for key, value in base.items() if key in fields and (same or key != "args")}
    return {**kept, **given}


def _by_section(values: Mapping[str, object]) -> dict[str, ConfigData]:
    """Group dotted settings by section. Raise a UserError for an unknown setting."""
    grouped: dict[str, ConfigData] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section not in Config.model_fields:
            raise UserError(f"Unknown setting '{key}'. Sections: {', '.join(Config.model_fields)}.")
        if not (is_setting(key) or name.startswith("args.")):
            known = dict.fromkeys(each for model in _models(section).values() for each in model.model_fields)
            raise UserError(f"Unknown setting '{key}'. Settings of {section}: {', '.join(known)}.")
        grouped.setdefault(section, {})[name] = value
    return grouped


def _kind_field(section: str) -> str:
    """Return the field that selects a component's kind, or "name" (in `data`, a new name drops args)."""
    default = Config.model_fields[section].default
    return default.KIND_FIELD if isinstance(default, ComponentSection) else "name"


def is_setting(key: str) -> bool:
    """Return True if the dotted key is a setting of its section, whichever kind is selected.

    Example:
        >>> [is_setting(key) for key in ("averager.std", "averager.sdt")]
        [True, False]
    """
    section, _, name = key.partition(".")
    return section in Config.model_fields and any(name in m.model_fields for m in _models(section).values())


@cache
def _models(section: str) -> dict[str | None, type[BaseModel]]:
    """Return a section's Pydantic models by kind (None for custom components and sections without kinds)."""
    found: dict[str | None, type[BaseModel]] = {}
    for model in leaf_types(Config.model_fields[section].annotation):
        if isinstance(model, type) and issubclass(model, BaseModel):
            field = model.model_fields.get(_kind_field(section))
            kinds = get_args(field.annotation) if field else ()
            found |= dict.fromkeys(kinds or (None,), model)
    return found


def _fields(section: str, kind: object) -> Collection[str]:
    """Return the settings of a kind. A kind that no model lists is a custom component."""
    models = _models(section)
    return models.get(kind if isinstance(kind, str) else None, models[None]).model_fields


def flatten(tree: Mapping[str, object], prefix: str = "") -> ConfigData:
    """Return the values of a nested mapping by dotted key."""
    flat: ConfigData = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def describe_differences(then: Mapping[str, object], now: Mapping[str, object]) -> str:
    """Describe up to six differences between two flat mappings. Return "" if the mappings are equal.

    Example:
        >>> describe_differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
        'b: 2 then, 3 now'
    """
    changed = [
        f"{key}: {then.get(key, 'absent')} then, {now.get(key, 'absent')} now"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    more = [f"and {len(changed) - 6} more"] if len(changed) > 6 else []
    return "; ".join(changed[:6] + more)


def parse_config(tree: object, *, where: str) -> Config:
    """Build a configuration from plain data. Error messages start with the source `where`.

    Raises:
        UserError: the data is not a mapping, a key is unknown, or a value is invalid.
    """
    try:
        return Config.model_validate(tree)
    except UnicodeEncodeError:  # YAML escapes can encode unpaired surrogates
        raise UserError(f"{where}: the text of a setting is not valid Unicode.") from None
    except ValidationError as error:
        # Pydantic adds union tags and kinds to the locations of errors. Messages name settings without them.
        tags = TAG_NAMES | {kind for section in Config.model_fields for kind in _models(section) if kind}
        raise UserError(f"{where}: {problems_of(error, omitted_tags=tags)}") from None


def load_config(path: Path) -> Config:
    """Read a YAML configuration.

    Raises:
        UserError: the file is missing or not YAML, a key is unknown, or a value is invalid.
    """
    return parse_config(read_yaml(path) or {}, where=str(path))


def dump_config(config: Config) -> str:
    """Return the configuration as YAML for `load_config`."""
    return dump_yaml(config.model_dump(mode="json"))


def parse_assignments(assignments: list[str]) -> ConfigData:
    """Parse assignments such as "optim.lr=0.01". Values are YAML.

    Raises:
        UserError: an assignment has no '=' or no key, or its value is not YAML.
    """
    values: ConfigData = {}
    for text in assignments:
        key, equals, raw = text.partition("=")
        if not equals or not key:
            raise UserError(f"--set requires key=value, got {text}. Example: --set optim.lr=0.01.")
        values[key.strip()] = parse_yaml(raw, where=f"--set {key}: the value")
    return values


def configure(
    method: str, overrides: Mapping[str, object] = {}, by_source: Mapping[str, Mapping[str, object]] = {}
) -> Config:
    """Return the published settings of a method, with overrides and the defaults of custom components.

    Args:
        method: Name of a method, or path of a recipe file (FILE.yaml).
        overrides: Settings by dotted key.
        by_source: Further overrides by source, such as "--set". Messages for invalid values name the source.

    Raises:
        UserError: the method, a key or a component is unknown, or a value is invalid.

    Example:
        >>> configure("maple", {"data.name": "dtd"}).optim.lr
        0.0035
    """
    config = Config().override({"method": method, **overrides})
    for source, values in by_source.items():
        config = config.override(values, where=source)
    return config.with_defaults()


def absolute_root(root: str) -> str:
    """Return the absolute path of a data root. URIs (s3://...) are returned unchanged.

    Raises:
        UserError: the path is not UTF-8 or contains a NUL, or its symbolic links form a cycle.
    """
    require_recordable(root)
    return root if "://" in root else str(resolve_path(root))


def absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute paths of data and weights."""
    changes: ConfigData = {}
    if config.data.root is not None:
        changes["data.root"] = absolute_root(config.data.root)
    weights = config.backbone.pretrained
    if weights is not None and os.path.isfile(weights):
        changes["backbone.pretrained"] = str(resolve_path(Path(weights).parent) / Path(weights).name)
    texts = getattr(config.regularizer, "texts", None)
    if texts is not None:
        changes["regularizer.texts"] = str(resolve_path(Path(texts)))
    return config.override(changes) if changes else config
