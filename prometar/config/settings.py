"""Configuration of one run. Configurations are immutable and reject unknown keys.

Each component of a method (`prometar.methods`) has a section, which selects its kind. The defaults
are those of ProMetaR's published code (CVPR 2024, commit c907bdb). Recipes change them for other methods.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prometar.config.recipes import Protocol, Recipe, SettingsBySection, recipe
from prometar.config.resolve import complete, overridden, resolve
from prometar.config.sections import (
    AugmentConfig,
    BackboneConfig,
    ConfigData,
    DataConfig,
    TrainConfig,
    kind_field,
)
from prometar.errors import UserError
from prometar.io.custom import complete_args
from prometar.io.files import require_recordable, resolve_path
from prometar.io.strict_model import problems_of
from prometar.io.yamltext import dump_yaml, parse_yaml, read_yaml
from prometar.methods.composition import KINDS, MethodConfig
from prometar.methods.section import TAG_NAMES, CustomSection


class Config(MethodConfig):
    """Complete configuration of one run.

    `Config(method=M)` has the published settings of the built-in method M (default: ProMetaR). Other
    arguments override these settings. The default dataset is `textures`.

    Raises:
        UserError: the method is unknown.
        ValidationError: a key is unknown, or a value is invalid.

    Example:
        >>> Config(method="coop").train.epochs
        200
    """

    data: DataConfig
    augment: AugmentConfig
    backbone: BackboneConfig
    train: TrainConfig

    def __init__(self, **given: Any) -> None:
        super().__init__(**resolve(given))

    def override(self, values: Mapping[str, object], *, where: str = "settings") -> "Config":
        """Return a copy with other values for dotted keys. Messages for invalid values start with `where`.

        If `method` changes, its recipe replaces all settings except data, backbone and seed. Settings in
        `values` that the selected kind does not have are ignored. If the kind of a section changes, its
        settings that the new kind does not have are dropped.

        Raises:
            UserError: a key is unknown, or a value is invalid.

        Example:
            >>> Config().override({"regularizer.text_weight": 10}).regularizer.text_weight
            10.0
        """
        changes = dict(values)
        method = str(changes.pop("method", self.method))
        start = self if method == self.method else self._with_recipe(method)
        tree = overridden(start.model_dump(mode="json"), changes)
        return parse_config(tree, where=where)

    def _with_recipe(self, method: str) -> "Config":
        """Return the published settings of a method, with data, backbone and seed of this configuration."""
        chosen = recipe(method)
        kept = {
            "method": chosen.name,
            "data": self.data,
            "backbone": self.backbone,
            "train": {"seed": self.train.seed},
        }
        return parse_config(complete(chosen.settings, kept), where=f"method {method}")

    @property
    def custom_components(self) -> dict[str, str]:
        """References to custom components, `package.module:Name`, by section."""
        references: dict[str, str] = {}
        for name, section in self:
            if isinstance(section, CustomSection):
                references[name] = section.reference
        if self.data.reference:
            references["data"] = self.data.reference
        return references

    def with_defaults(self) -> "Config":
        """Return a copy that contains the default settings of custom components.

        This method imports the modules of the components. Call it only if the user requested these
        components.

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
            listed = ", ".join(self.custom_components.values())
            raise UserError(
                f"{where} uses custom components ({listed}). Review their code, then pass --trust-code (in "
                "Python, trust_code=True)."
            )
        return self

    @staticmethod
    def require_used(keys: Iterable[str], configs: Iterable["Config"], name: str) -> None:
        """Check that each setting exists in at least one of the configurations.

        A configuration has only the settings of the kinds that it selects.

        Args:
            keys: Dotted keys of settings, given with --set. Settings of custom components are not checked.
            configs: Configurations of the runs.
            name: Name of the configurations in the message.

        Raises:
            UserError: no configuration has one of the settings.
        """
        used: set[str] = set()
        for config in configs:
            used.update(config.flat())
        for key in keys:
            if key in used or ".args" in key:
                continue
            section = key.partition(".")[0]
            fix = f"Also set {section}.{kind_field(section)} to one that has it."
            raise UserError(f"--set {key} does not apply to {name}. {fix}")

    def flat(self) -> ConfigData:
        """Return all settings as plain data by dotted key."""
        return flatten(self.model_dump(mode="json"))

    def identity(self) -> ConfigData:
        """Return all settings that determine results, by dotted key.

        `data.root` is left out, because images may move. Settings that version 0.2 did not have are left out
        if they have their default values, and sections have the order of version 0.2. Thus runs and studies
        of that version keep their digests.
        """
        tree = self.model_dump(mode="json")
        # Digests depend on the order, and version 0.2 had these sections last.
        for section in ("data", "augment", "backbone", "optim", "train"):
            tree[section] = tree.pop(section)
        settings: ConfigData = {}
        for key, value in flatten(tree).items():
            is_added_default = key in _ADDED_DEFAULTS and _ADDED_DEFAULTS[key] == value
            if key != "data.root" and not is_added_default:
                settings[key] = value
        return settings


_MAX_DIFFERENCES = 6
"""Maximum number of differences that a message lists."""

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
    """Describe the first `_MAX_DIFFERENCES` differences between two flat mappings, or return "".

    Example:
        >>> describe_differences({"a": 1, "b": 2}, {"a": 1, "b": 3})
        'b: 2 then, 3 now'
    """
    differences: list[str] = []
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            old = then.get(key, "absent")
            new = now.get(key, "absent")
            differences.append(f"{key}: {old} then, {new} now")
    listed = differences[:_MAX_DIFFERENCES]
    num_others = len(differences) - len(listed)
    if num_others:
        listed.append(f"and {num_others} more")
    return "; ".join(listed)


def parse_config(tree: object, *, where: str) -> Config:
    """Build a configuration from plain data. Error messages start with the source `where`.

    Raises:
        UserError: the data is not a mapping, a key is unknown, or a value is invalid.
    """
    if isinstance(tree, Mapping):
        for key in tree:
            if not isinstance(key, str):
                raise UserError(f"{where}: {key}: Keys should be strings, got {key!r}")
    try:
        return Config.model_validate(tree)
    except UnicodeEncodeError:  # YAML escapes can encode unpaired surrogates
        raise UserError(f"{where}: the text of a setting is not valid Unicode.") from None
    except ValidationError as error:
        # Pydantic adds union tags and kinds to the locations of errors. Messages name settings without them.
        tags = set(TAG_NAMES)
        for kinds in KINDS.values():
            tags.update(kinds.built_in)
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
    method: str,
    overrides: Mapping[str, object] = {},
    by_source: Mapping[str, Mapping[str, object]] = {},
    *,
    protocol: Protocol | None = None,
) -> Config:
    """Return the published settings of a method, with overrides and the defaults of custom components.

    Later settings win in this order: the recipe's `settings`, the entries of its `by` that apply to the run,
    `overrides`, `by_source`.

    Args:
        method: Name of a method, or path of a recipe file (FILE.yaml).
        overrides: Settings by dotted key.
        by_source: Further overrides by source, such as "--set". Messages for invalid values name the source.
        protocol: Protocol of the run. None: no entry of `by` applies.

    Raises:
        UserError: the method, a key or a component is unknown, or a value is invalid.

    Example:
        >>> configure("maple", {"data.name": "dtd"}).optim.lr
        0.0035
        >>> configure("mmrl", {"data.name": "dtd"}, protocol="base-to-new").regularizer.text_weight
        6.0
    """
    chosen = recipe(method)

    def configured(settings: SettingsBySection) -> Config:
        config = _of_recipe(chosen, settings, method).override(overrides)
        for source, values in by_source.items():
            config = config.override(values, where=source)
        return config

    config = configured(chosen.settings)
    if protocol is not None:
        # Dataset and shots are known only now, because they may be among the overrides.
        entries = chosen.entries_for(config.data.name, protocol, config.data.shots)
        if entries:
            config = configured(chosen.settings_with(entries))
    return config.with_defaults()


def _of_recipe(chosen: Recipe, settings: SettingsBySection, method: str) -> Config:
    """Return the configuration with the name of a recipe and with `settings`. Messages name `method`."""
    return parse_config(complete(settings, {"method": chosen.name}), where=f"method {method}")


def valid_recipe(method: str) -> Recipe:
    """Return a recipe after checking its settings, alone and with each entry of `by`.

    Custom components are not imported.

    Raises:
        UserError: the method is unknown, or a section, key, kind or value of the recipe is invalid.
    """
    chosen = recipe(method)
    _of_recipe(chosen, chosen.settings, method)
    for entry in chosen.by:
        _of_recipe(chosen, chosen.settings_with([entry]), method)
    return chosen


def absolute_root(root: str) -> str:
    """Return the absolute path of a data root. URIs (s3://...) are returned unchanged.

    Raises:
        UserError: the path is not UTF-8 or contains a NUL, or its symbolic links form a cycle.
    """
    require_recordable(root)
    return root if "://" in root else str(resolve_path(root))


def texts_path(config: Config) -> str | None:
    """Return the setting `regularizer.texts` (path of a file), or None if the regularizer reads no file."""
    return getattr(config.regularizer, "texts", None)


def absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute paths of data, weights and texts."""
    changes: ConfigData = {}
    if config.data.root is not None:
        changes["data.root"] = absolute_root(config.data.root)
    weights = config.backbone.pretrained
    if weights is not None and os.path.isfile(weights):
        # Only the folder is resolved. A link in the cache of Hugging Face leads to a file without the suffix
        # .safetensors, which would be refused.
        path = Path(weights)
        changes["backbone.pretrained"] = str(resolve_path(path.parent) / path.name)
    texts = texts_path(config)
    if texts is not None:
        changes["regularizer.texts"] = str(resolve_path(Path(texts)))
    return config.override(changes) if changes else config
