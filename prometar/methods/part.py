"""Base classes of the components of methods. Each kind is a class whose fields are its settings.

Configurations contain these classes, so the modules that define them import torch only in functions.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import Discriminator, Field, JsonValue, Tag

from prometar.io.custom import is_reference, make
from prometar.io.plain_data import PlainData


class Part(PlainData):
    """Component of a method. `CHOOSER` is the name of the field that selects its kind."""

    CHOOSER: ClassVar[str] = "kind"

    def component(self) -> Any:
        """Return the component that the method uses, by default this object."""
        return self


class Custom(Part):
    """Reference to a custom component, `package.module:Name`, and its arguments."""

    args: dict[str, JsonValue] = Field(default={}, exclude_if=lambda args: not args)

    @property
    def reference(self) -> str:
        return str(getattr(self, self.CHOOSER))

    def component(self) -> Any:
        """Import and return the component.

        Raises:
            UserError: the component cannot be imported, or rejects its arguments.
        """
        return make(self.reference, self.args)


class CustomPart(Custom):
    """Custom component that is selected by `kind`."""

    kind: str


BuiltIn = TypeVar("BuiltIn")
Own = TypeVar("Own")


def _origin(value: Any) -> str:
    """Return the tag, built-in or custom, of a section."""
    tree = dict(value) if isinstance(value, Mapping | Part) else {}
    names = [tree.get(key) for key in ("kind", "augmentation")]
    return "custom" if any(isinstance(name, str) and is_reference(name) for name in names) else "built-in"


BUILT_IN, CUSTOM, ORIGIN = Tag("built-in"), Tag("custom"), Discriminator(_origin)
TAGS = frozenset({"built-in", "custom"})
Chosen = Annotated[Annotated[BuiltIn, Field(discriminator="kind"), BUILT_IN] | Annotated[Own, CUSTOM], ORIGIN]
"""Section of a configuration: a built-in or a custom component."""
