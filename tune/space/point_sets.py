"""Points of a space by number: a grid in a shuffled order, and a quasi-random sequence."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from prometar.errors import UserError
from tune.space.spaces import Choice, FloatRange, IntRange, Range, Space

Point = Mapping[str, Any]

GRID_LEVELS = 5  # values of a range of numbers in a grid, its ends among them
MOST_POINTS = 100_000  # of a grid


def grid_points(space: Space, seed: int) -> Sequence[Point]:
    """Every combination of the space's choices and of `GRID_LEVELS` numbers a range, shuffled by `seed`.

    Settings whose conditions do not hold are left out, so no combination is there twice.

    Raises:
        UserError: more than `MOST_POINTS` combinations.
    """
    points = list(islice(_combinations(list(space.ranges.items()), {}, levels), MOST_POINTS + 1))
    if len(points) > MOST_POINTS:
        raise UserError(
            f"the grid of the space {space.name} has more than {MOST_POINTS:,} points: search fewer "
            "settings, or list choices"
        )
    random.Random(seed).shuffle(points)
    return points


def all_points(space: Space) -> Sequence[Point] | None:
    """Every combination of a space of choices and whole numbers; None of more than `MOST_POINTS`."""
    if any(isinstance(entry, FloatRange) for entry in space.ranges.values()):
        return None
    points = list(islice(_combinations(list(space.ranges.items()), {}, _every), MOST_POINTS + 1))
    return None if len(points) > MOST_POINTS else points


def _every(entry: Range) -> Sequence[Any]:
    if isinstance(entry, Choice):
        return entry.choices
    assert isinstance(entry, IntRange)
    return range(entry.low, entry.high + 1)


def _combinations(
    entries: list[tuple[str, Range]], before: dict[str, Any], values_of: Callable[[Range], Sequence[Any]]
) -> Iterator[Point]:
    if not entries:
        yield before
        return
    (key, entry), rest = entries[0], entries[1:]
    if not entry.active(before):
        yield from _combinations(rest, before, values_of)
        return
    for value in values_of(entry):
        yield from _combinations(rest, {**before, key: value}, values_of)


def levels(entry: Range) -> tuple[Any, ...]:
    """A range's values in a grid.

    Example:
        >>> levels(FloatRange(type="float", low=1.0, high=16.0, log=True))
        (1.0, 2.0, 4.0, 8.0, 16.0)
    """
    if isinstance(entry, Choice):
        return entry.choices
    steps = [k / (GRID_LEVELS - 1) for k in range(GRID_LEVELS)]
    values = [entry.low, *(entry.between(u) for u in steps[1:-1]), entry.high]
    if isinstance(entry, FloatRange):
        return tuple(values)
    return tuple(dict.fromkeys(round(value) for value in values))


def quasirandom_point(space: Space, seed: int, number: int) -> Point:
    """The `number`-th point of a scrambled Sobol sequence, a value for every setting of the space.

    Source: Sobol, 1967; scrambled as in `scipy.stats.qmc.Sobol`.
    """
    from scipy.stats import qmc  # here: no other sampler waits for it

    sequence = qmc.Sobol(len(space.ranges), scramble=True, rng=seed)
    if number:
        sequence.fast_forward(number)
    coordinates = sequence.random(1)[0]
    return {
        key: at(entry, float(u)) for (key, entry), u in zip(space.ranges.items(), coordinates, strict=True)
    }


def at(entry: Range, u: float) -> Any:
    """The value at 0 <= u < 1 of a range: equal shares of u for equal shares of the range, or choices.

    Example:
        >>> at(Choice(type="choice", choices=("a", "b")), 0.6)
        'b'
    """
    if isinstance(entry, Choice):
        return entry.choices[min(int(u * len(entry.choices)), len(entry.choices) - 1)]
    if isinstance(entry, FloatRange):
        return min(max(entry.between(u), entry.low), entry.high)
    low, high = (math.log(entry.low), math.log(entry.high + 1)) if entry.log else (entry.low, entry.high + 1)
    value = low + u * (high - low)
    return min(max(int(math.exp(value) if entry.log else value), entry.low), entry.high)  # exp(log(5)) < 5
