"""Base classes of the parts of a method: one class per kind, whose fields are the kind's settings.

A configuration holds the parts themselves, so no file here imports torch when it is imported.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Discriminator, Field, JsonValue, Tag

from prometar.io.custom import is_reference, make
from prometar.io.plain_data import PlainData


class Part(PlainData):
    """A part of a method. The field `CHOOSER` holds the name of its kind."""

    CHOOSER: ClassVar[str] = "kind"

    def component(self) -> Any:
        """Return what the method is composed of: the part itself."""
        return self


class Custom(Part):
    """A custom component, `package.module:Name`, with its arguments."""

    args: dict[str, JsonValue] = Field(default={}, exclude_if=lambda args: not args)

    @property
    def reference(self) -> str:
        return str(getattr(self, self.CHOOSER))

    def component(self) -> Any:
        """Import and return the component.

        Raises:
            UserError: it cannot be loaded, or rejects its arguments.
        """
        return make(self.reference, self.args)


class CustomPart(Custom):
    """A custom component of an axis whose kinds share no setting."""

    kind: str


BuiltIn = TypeVar("BuiltIn")
Own = TypeVar("Own")


def _origin(value: Any) -> str:
    """Return the tag of the union's half that a section belongs to."""
    tree = dict(value) if isinstance(value, Mapping | Part) else {}
    names = [tree.get(key) for key in ("kind", "augmentation")]
    return "custom" if any(isinstance(name, str) and is_reference(name) for name in names) else "built-in"


BUILT_IN, CUSTOM, ORIGIN = Tag("built-in"), Tag("custom"), Discriminator(_origin)
TAGS = frozenset({"built-in", "custom"})
Chosen = Annotated[Annotated[BuiltIn, Field(discriminator="kind"), BUILT_IN] | Annotated[Own, CUSTOM], ORIGIN]
"""A section of a configuration: one of the built-in kinds, or a custom component."""
