"""Sections of a run's configuration, and the settings of each section.

Sections of components (`prometar.methods`) select a kind, which has its own settings. Their table is
`prometar.methods.composition.KINDS`.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, JsonValue, model_validator

from prometar.errors import UserError
from prometar.io.custom import is_custom
from prometar.io.strict_model import StrictModel
from prometar.methods.composition import KINDS

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


OTHER_SECTIONS: dict[str, type[StrictModel]] = {
    "data": DataConfig,
    "augment": AugmentConfig,
    "backbone": BackboneConfig,
    "train": TrainConfig,
}
SECTIONS = (*KINDS, *OTHER_SECTIONS)


def kind_field(section: str) -> str:
    """Return the field that selects the kind of a section. For sections without kinds, return "name"."""
    return KINDS[section].field if section in KINDS else "name"


def default_section(section: str) -> ConfigData:
    """Return a section with its default kind. Sections without kinds are empty."""
    return {KINDS[section].field: KINDS[section].default} if section in KINDS else {}


def settings_of_kind(section: str, kind: object) -> tuple[str, ...]:
    """Return the settings that a section of this kind has."""
    if section in KINDS:
        return KINDS[section].settings_of(kind)
    return tuple(OTHER_SECTIONS[section].model_fields)


def settings_of(section: str) -> tuple[str, ...]:
    """Return the settings of a section, whichever kind is selected."""
    if section in KINDS:
        return KINDS[section].settings
    return tuple(OTHER_SECTIONS[section].model_fields)


def is_setting(key: str) -> bool:
    """Return True if the dotted key is a setting of its section, whichever kind is selected.

    Example:
        >>> [is_setting(key) for key in ("averager.std", "averager.sdt")]
        [True, False]
    """
    section, _, name = key.partition(".")
    return section in SECTIONS and name in settings_of(section)


def merge_section(section: str, base: Mapping[str, object], given: Mapping[str, object]) -> ConfigData:
    """Return `base` updated with `given`. If the kind changes, drop `args` and what the new kind lacks.

    In `data`, the dataset's name counts as kind, because `args` belong to a dataset.
    """
    field = kind_field(section)
    kind = given.get(field, base.get(field))
    same_kind = kind == base.get(field)
    settings = settings_of_kind(section, kind)
    kept = {name: value for name, value in base.items() if name in settings and (same_kind or name != "args")}
    return {**kept, **given}


def group_by_section(values: Mapping[str, object]) -> dict[str, ConfigData]:
    """Group values by dotted key into sections.

    Raises:
        UserError: a key is not a setting of any kind of its section.
    """
    grouped: dict[str, ConfigData] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if section not in SECTIONS:
            raise UserError(f"Unknown setting '{key}'. Sections: {', '.join(('method', *SECTIONS))}.")
        if not is_setting(key) and not name.startswith("args."):
            known = ", ".join(settings_of(section))
            raise UserError(f"Unknown setting '{key}'. Settings of {section}: {known}.")
        grouped.setdefault(section, {})[name] = value
    return grouped
