"""Base classes of the configuration sections that describe a method's components.

Each kind of component has its own section class, whose fields are the component's settings. Modules that
define sections import torch only inside functions, so that loading a configuration does not import torch.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Discriminator, Field, JsonValue, Tag

from prometar.io.custom import instantiate, is_custom
from prometar.io.strict_model import BUILT_IN, StrictModel


class ComponentSection(StrictModel):
    """Section that describes a component. `KIND_FIELD` is the field that selects the component's kind."""

    KIND_FIELD: ClassVar[str] = "kind"

    def component(self) -> Any:
        """Return the component. By default, the section itself is the component."""
        return self


class CustomSection(ComponentSection):
    """Section of a custom component: its reference, `package.module:Name`, and its arguments."""

    args: dict[str, JsonValue] = Field(default={}, exclude_if=lambda args: not args)

    @property
    def reference(self) -> str:
        return str(getattr(self, self.KIND_FIELD))

    def component(self) -> Any:
        """Import and return the component.

        Raises:
            UserError: the component cannot be imported, or rejects its arguments.
        """
        return instantiate(self.reference, self.args)


class CustomKindSection(CustomSection):
    """Section of a custom component whose `KIND_FIELD` is `kind`. Only augmentations have another."""

    kind: str


BuiltInT = TypeVar("BuiltInT")
CustomT = TypeVar("CustomT")


def _union_tag(value: Any) -> str:
    """Return the tag by which pydantic selects the type of a section: built-in or custom."""
    fields = dict(value) if isinstance(value, Mapping | ComponentSection) else {}
    kinds = [fields.get(key) for key in ("kind", "augmentation")]  # the KIND_FIELDs of all sections
    return "custom" if any(isinstance(kind, str) and is_custom(kind) for kind in kinds) else BUILT_IN


BUILT_IN_TAG, CUSTOM_TAG, DISCRIMINATOR = Tag(BUILT_IN), Tag("custom"), Discriminator(_union_tag)
TAG_NAMES = frozenset({BUILT_IN, "custom"})  # omitted from validation messages
BuiltInOrCustom = Annotated[
    Annotated[BuiltInT, Field(discriminator="kind"), BUILT_IN_TAG] | Annotated[CustomT, CUSTOM_TAG],
    DISCRIMINATOR,
]
"""Type of a section that describes either a built-in or a custom component."""
