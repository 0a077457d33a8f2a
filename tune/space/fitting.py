"""Which of a space's settings a method searches: what it does not use is none of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from prometar.config.settings import Config
from prometar.methods.composition import build
from tune.space.spaces import Range, Space

_PARTS = {"prompts", "regularizer", "modulator", "inner", "task", "averager"}


def is_used(key: str, entry: Range, config: Config) -> bool:
    """Whether values of a setting make different methods of a configuration, or are no part of methods.

    Raises:
        UserError: a value that no run takes.
    """
    beside = {other: values[0] for other, values in entry.when.items()}
    methods = [build(config.override({**beside, key: value})) for value in entry.tried]
    return key.split(".")[0] not in _PARTS or len(methods) == 1 or any(m != methods[0] for m in methods)


def fitted(space: Space, config: Config, given: Collection[str]) -> Space:
    """The space without what the method does not use, and without ranges that its own values lie outside.

    So a space serves methods that it was not written for: CoOp has no prompts in the image tower, and a depth
    of 1 to 12 there is not searched. What is drawn beside a setting that is left out is drawn where the
    method's own value allows it. `given`: settings that are the user's: a range that does not hold one of
    them stays, and is refused.
    """
    own, kept = config.flat(), dict[str, Range]()
    for key, entry in space.ranges.items():
        if any(own[other] not in held for other, held in entry.when.items() if other not in kept):
            continue
        when = {other: held for other, held in entry.when.items() if other in kept}
        beside_its_own = all(own[other] in held for other, held in when.items())
        outside = beside_its_own and key not in given and not entry.holds(own[key])
        if not outside and is_used(key, entry, config):
            kept[key] = entry.model_copy(update={"when": when})
    if len(kept) == len(space.ranges):
        return space
    return replace(space, name=f"{space.name} for {config.method}", ranges=kept)
