"""Base classes of the configuration's sections that describe components of a method.

Each kind of component is a class whose fields are its settings. The modules of these classes import
torch only inside functions, so that loading a configuration does not import it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Discriminator, Field, JsonValue, Tag

from prometar.io.custom import instantiate, is_custom
from prometar.io.strict_model import BUILT_IN_TAG, StrictModel


class ComponentSection(StrictModel):
    """Section that describes a component. `KIND_FIELD`: name of the field that selects its kind."""

    KIND_FIELD: ClassVar[str] = "kind"

    def component(self) -> Any:
        """Return the component. By default, the section itself is the component."""
        return self


class CustomSection(ComponentSection):
    """Section with the reference to a custom component, `package.module:Name`, and its arguments."""

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
    """Custom section with the reference in `kind`. The augmentation section has another `KIND_FIELD`."""

    kind: str


BuiltInT = TypeVar("BuiltInT")
CustomT = TypeVar("CustomT")


def _origin(value: Any) -> str:
    """Return the tag of a section: built-in or custom."""
    fields = dict(value) if isinstance(value, Mapping | ComponentSection) else {}
    kinds = [fields.get(key) for key in ("kind", "augmentation")]  # the KIND_FIELD of every section
    return "custom" if any(isinstance(kind, str) and is_custom(kind) for kind in kinds) else BUILT_IN_TAG


BUILT_IN, CUSTOM, ORIGIN = Tag(BUILT_IN_TAG), Tag("custom"), Discriminator(_origin)
ORIGIN_TAGS = frozenset({BUILT_IN_TAG, "custom"})
BuiltInOrCustom = Annotated[
    Annotated[BuiltInT, Field(discriminator="kind"), BUILT_IN] | Annotated[CustomT, CUSTOM], ORIGIN
]
"""Type of a section that describes either a built-in or a custom component."""
