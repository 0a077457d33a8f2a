"""Protocols as values: which images a run trains on, what is tested, and what the table calls it."""

from dataclasses import dataclass

from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.errors import UserError
from prometar.metrics import ACCURACY, HARMONIC

ELEVEN = tuple(name for name, row in BENCHMARKS.items() if not row.variant_of)
VARIANTS = tuple(name for name, row in BENCHMARKS.items() if row.variant_of == "imagenet")


@dataclass(frozen=True)
class Protocol:
    """A way to compare methods.

    Args:
        name: What `--protocol` takes.
        about: One line for people.
        objective: What a run trains and tests on (`prometar.data.splits.objective`).
        datasets: By default; those trained on, or, where there is a source, those tested on.
        source: The one data set that all runs train on; None: each data set is trained on by itself.
        shots: Training images a class by default; more than one number makes a column of each.
    """

    name: str
    about: str
    objective: str
    datasets: tuple[str, ...]
    source: str | None = None
    shots: tuple[int, ...] = (16,)

    @property
    def by_shots(self) -> bool:
        """Whether the table has a column for each number of shots."""
        return len(self.shots) > 1

    def columns(self, shots: tuple[int, ...]) -> tuple[str, ...]:
        """The table's columns."""
        if self.by_shots:
            return tuple(shots_column(k) for k in shots)
        return ("base", "new", HARMONIC) if self.objective == "final" else (ACCURACY,)


def shots_column(shots: int) -> str:
    """The column of a number of shots.

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
            "train on all classes of the source; test on all classes of each other data set",
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
            "train and test on all classes, with few to many images a class",
            objective="all_classes",
            datasets=ELEVEN,
            shots=(1, 2, 4, 8, 16),
        ),
    )
}


def protocol_of(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        UserError: an unknown name.
    """
    if name not in PROTOCOLS:
        raise UserError(f"unknown protocol '{name}': choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
