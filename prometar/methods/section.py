"""Configuration sections that describe a method's components, and the table of the kinds of each section.

Each kind of component has its own section class, whose fields are the component's settings. Modules that
define sections import torch only inside functions, so that loading a configuration does not import torch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from pydantic import Field, GetCoreSchemaHandler, JsonValue
from pydantic_core import CoreSchema, core_schema

from prometar.io.custom import instantiate, is_custom
from prometar.io.strict_model import BUILT_IN, StrictModel

CUSTOM = "custom"
TAG_NAMES = frozenset({BUILT_IN, CUSTOM})
"""Names that pydantic adds to the locations of errors, besides those of kinds."""


class ComponentSection(StrictModel):
    """Section that describes a component. `KIND_FIELD` is the field that selects the component's kind."""

    KIND_FIELD: ClassVar[str] = "kind"

    @property
    def selected_kind(self) -> str:
        """Name of a built-in kind, or reference to a custom component, `package.module:Name`."""
        return str(getattr(self, self.KIND_FIELD))

    def component(self) -> Any:
        """Return the component. By default, the section itself is the component."""
        return self


class CustomSection(ComponentSection):
    """Section of a custom component: its reference, `package.module:Name`, and its arguments."""

    args: dict[str, JsonValue] = Field(default={}, exclude_if=lambda args: not args)

    @property
    def reference(self) -> str:
        return self.selected_kind

    def component(self) -> Any:
        """Import and return the component.

        Raises:
            UserError: the component cannot be imported, or rejects its arguments.
        """
        return instantiate(self.reference, self.args)


class CustomKindSection(CustomSection):
    """Section of a custom component whose `KIND_FIELD` is `kind`. Only augmentations have another."""

    kind: str


@dataclass(frozen=True, eq=False)
class Kinds:
    """Kinds of a component. A field of type `Annotated[Base, Kinds(...)]` accepts a section of any kind.

    Args:
        built_in: Section class by kind. The class's field `KIND_FIELD` accepts the kind.
        default: Kind that a configuration has if neither the user nor the recipe selects one (ProMetaR's).
        custom: Section class of custom components, `package.module:Name`.
    """

    built_in: Mapping[str, type[ComponentSection]]
    default: str
    custom: type[CustomSection] = CustomKindSection

    @property
    def field(self) -> str:
        """Name of the field that selects the kind."""
        return self.custom.KIND_FIELD

    @cached_property
    def settings(self) -> tuple[str, ...]:
        """Settings of all kinds, without repetitions."""
        names: dict[str, None] = {}  # as an ordered set
        for section_class in (*self.built_in.values(), self.custom):
            names |= dict.fromkeys(section_class.model_fields)
        return tuple(names)

    def settings_of(self, kind: object) -> tuple[str, ...]:
        """Return the settings of a kind. A kind that is not in the table is a custom component."""
        is_built_in = isinstance(kind, str) and kind in self.built_in
        return self._settings_by_kind[kind if is_built_in else CUSTOM]

    @cached_property
    def _settings_by_kind(self) -> dict[object, tuple[str, ...]]:
        classes = {**self.built_in, CUSTOM: self.custom}
        return {kind: tuple(section_class.model_fields) for kind, section_class in classes.items()}

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Validate a section with the class of its kind. Called by pydantic for `Annotated`."""
        schemas = {kind: handler.generate_schema(section) for kind, section in self.built_in.items()}
        built_in = core_schema.tagged_union_schema(schemas, discriminator=self.field)
        custom = handler.generate_schema(self.custom)
        return core_schema.tagged_union_schema({BUILT_IN: built_in, CUSTOM: custom}, discriminator=self._tag)

    def _tag(self, value: object) -> str:
        """Return `CUSTOM` if a section, or a mapping of its settings, selects a custom component."""
        kind = None
        if isinstance(value, Mapping):
            kind = value.get(self.field)
        elif isinstance(value, ComponentSection):
            kind = value.selected_kind
        return CUSTOM if isinstance(kind, str) and is_custom(kind) else BUILT_IN
