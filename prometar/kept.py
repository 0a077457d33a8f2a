"""What a process keeps for the runs that follow, in bounded memory."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class Kept(Generic[T]):
    """Values by key; those that were asked for longest ago give way to new ones.

    Args:
        most: Bytes of all together. most_each: Of one; a larger one is not kept.

    Example:
        >>> kept = Kept[str](most=5, most_each=3)
        >>> for key, text in enumerate(("abc", "de", "f")):
        ...     _ = kept.put(key, text, len(text))
        >>> kept.find(0), kept.find(1), kept.takes(4)
        (None, 'de', False)
    """

    most: int
    most_each: int
    _values: dict[Hashable, tuple[T, int]] = field(default_factory=dict)

    def takes(self, num_bytes: int) -> bool:
        """Whether a value of this size is kept."""
        return num_bytes <= self.most_each

    def find(self, key: Hashable) -> T | None:
        """The value, if it is there."""
        if key not in self._values:
            return None
        self._values[key] = self._values.pop(key)
        return self._values[key][0]

    def put(self, key: Hashable, value: T, num_bytes: int) -> T:
        """Keep a value if this `takes` it; returns it."""
        if not self.takes(num_bytes):
            return value
        while self._values and sum(size for _, size in self._values.values()) + num_bytes > self.most:
            del self._values[next(iter(self._values))]
        self._values[key] = value, num_bytes
        return value

    def clear(self) -> None:
        """Keep nothing."""
        self._values.clear()
