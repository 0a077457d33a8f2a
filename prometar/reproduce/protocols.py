"""Protocols: which images a run trains on, what is tested, and the columns of the table."""

from dataclasses import dataclass

from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.errors import UserError
from prometar.metrics import ACCURACY, HARMONIC

ELEVEN = tuple(name for name, row in BENCHMARKS.items() if not row.variant_of)
VARIANTS = tuple(name for name, row in BENCHMARKS.items() if row.variant_of == "imagenet")


@dataclass(frozen=True)
class Protocol:
    """Protocol to compare methods.

    Args:
        about: Description in one line.
        objective: What a run trains and tests on (`prometar.data.splits.objective`).
        datasets: Default datasets. With a source, they are tested on only.
        source: Dataset that all runs train on; None: each dataset is trained on by itself.
        shots: Default training images per class. Several numbers make one column each.
    """

    name: str
    about: str
    objective: str
    datasets: tuple[str, ...]
    source: str | None = None
    shots: tuple[int, ...] = (16,)

    @property
    def by_shots(self) -> bool:
        """True if the table has one column per number of shots."""
        return len(self.shots) > 1

    def columns(self, shots: tuple[int, ...]) -> tuple[str, ...]:
        """Return the table's columns."""
        if self.by_shots:
            return tuple(map(shots_column, shots))
        return ("base", "new", HARMONIC) if self.objective == "final" else (ACCURACY,)


def shots_column(shots: int) -> str:
    """Return the column of a number of shots.

    Example:
        >>> shots_column(1), shots_column(16)
        ('1 shot', '16 shots')
    """
    return f"{shots} shot{'s' * (shots != 1)}"


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "base-to-new",
            "train on the first half of the classes; test on them and on the rest, apart",
            objective="final",
            datasets=ELEVEN,
        ),
        Protocol(
            "cross-dataset",
            "train on all classes of the source; test on all classes of each other dataset",
            objective="all_classes",
            datasets=tuple(name for name in ELEVEN if name != "imagenet"),
            source="imagenet",
        ),
        Protocol(
            "domain-generalisation",
            "train on all classes of the source; test on other images of its classes",
            objective="all_classes",
            datasets=VARIANTS,
            source="imagenet",
        ),
        Protocol(
            "few-shot",
            "train and test on all classes, with few to many images per class",
            objective="all_classes",
            datasets=ELEVEN,
            shots=(1, 2, 4, 8, 16),
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """Return a protocol by name.

    Raises:
        UserError: unknown name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol '{name}': choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
