"""Sections of a run's configuration, and the settings of each section.

The section of a component (`prometar.methods`) selects a kind, and each kind has its own settings. The table
`prometar.methods.composition.KINDS` lists these sections and kinds.
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
    """Training data.

    Args:
        name: Name of a dataset, or reference to a custom loader (`package.module:Name`).
        root: Folder or URI that contains the dataset. Rendered datasets have none.
        shots: Number of training images per class, which are sampled with `train.seed`.
        args: Arguments of a custom loader.
    """

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
    """Augmentation of training images.

    Args:
        crop_scale_min: Minimum area of a random crop, as a share of the image's area.
        crop_scale_max: Maximum area of a random crop, as a share of the image's area.
        flip: Probability of a horizontal flip.
        jitter: Brightness, contrast and saturation are scaled by random factors in 1 ± jitter.
        views: Number of augmented views of each image. With two views, the regularizer compares the prompted
            features of the first view with the frozen features of the second view.
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
    """The frozen CLIP.

    Args:
        name: Name of an open_clip model, or the embedded `mini`.
        pretrained: Weights of the open_clip model: a tag or a .safetensors file.
        precision: Precision of the towers. Prompts, the modulator's gate, losses and optimizers use at least
            fp32. `tf32` is float32 whose matrix products are computed in TF32 on NVIDIA GPUs. On other
            devices, `tf32` equals `fp32`.
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
    """Return a section that selects its default kind. For sections without kinds, return an empty section."""
    if section not in KINDS:
        return {}
    kinds = KINDS[section]
    return {kinds.field: kinds.default}


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
    """Return `base` updated with `given`.

    If the kind changes, `args` and the settings that the new kind does not have are dropped from `base`. In
    the section `data`, the name of the dataset counts as kind, because `args` belong to a dataset.
    """
    field = kind_field(section)
    kind = given.get(field, base.get(field))
    kept_names = set(settings_of_kind(section, kind))
    if kind != base.get(field):
        kept_names.discard("args")
    kept = {name: value for name, value in base.items() if name in kept_names}
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
            sections = ", ".join(("method", *SECTIONS))
            raise UserError(f"Unknown setting '{key}'. Sections: {sections}.")
        if not is_setting(key) and not name.startswith("args."):
            known = ", ".join(settings_of(section))
            raise UserError(f"Unknown setting '{key}'. Settings of {section}: {known}.")
        grouped.setdefault(section, {})[name] = value
    return grouped
