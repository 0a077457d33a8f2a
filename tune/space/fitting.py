"""Which of a space's settings a method searches: what it does not use is none of them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from prometar.config.settings import Config
from prometar.methods.composition import Method, build
from tune.space.spaces import Choice, Range, Space

_PARTS = {"prompts", "regularizer", "modulator", "inner", "task", "averager"}
Run = tuple[Method, dict[str, Any]]
"""What of a configuration decides a run: its method, and every setting that no part is made of."""


def is_used(key: str, entry: Range, ranges: Mapping[str, Range], config: Config) -> bool:
    """Whether values of a setting make different runs of a configuration, under any condition of theirs.

    Raises:
        UserError: a value that no run takes.
    """
    return _differ(_runs(key, entry, ranges, config))


def _differ(runs: Sequence[list[Run]]) -> bool:
    first, *others = runs
    return not others or any(other != first for other in others)


def fitted(space: Space, config: Config, given: Collection[str]) -> Space:
    """The space without what the method does not use, and without ranges that its own values lie outside.

    So a space serves methods that it was not written for: CoOp has no prompts in the image tower, and a depth
    of 1 to 12 there is not searched. What is drawn beside a setting that is left out is drawn where the
    method's own value allows it; of choices that are one to the method, one is drawn. `given`: settings that
    are the user's: what they put outside a range is named in the space's name.
    """
    own, kept, fixed = config.flat(), dict[str, Range](), list[str]()
    for key, whole in space.ranges.items():
        entry = _beside(whole, kept, fixed, own)
        if entry is None:
            continue
        if entry.active(own) and not entry.holds(own[key]):
            if key in given:
                fixed.append(key)
        elif _differ(runs := _runs(key, entry, kept, config)):
            kept[key] = _distinct(entry, runs, own[key]) if isinstance(entry, Choice) else entry
    if kept == dict(space.ranges):
        return space
    by_method = f" for {config.method}" if len(kept) + len(fixed) < len(space.ranges) else ""
    without = f" without {', '.join(fixed)}" if fixed else ""
    return replace(space, name=f"{space.name}{by_method}{without}", ranges=kept)


def _beside(
    entry: Range, kept: Mapping[str, Range], fixed: Collection[str], own: Mapping[str, Any]
) -> Range | None:
    """A range with conditions on what is searched alone; None where the method never draws it."""
    when = {}
    for other, held in entry.when.items():
        if other in kept:
            when[other] = tuple(value for value in held if kept[other].holds(value))
        elif other not in fixed and own[other] not in held:
            return None
    return entry.model_copy(update={"when": when})


def _distinct(entry: Choice, runs: Sequence[list[Run]], own: Any) -> Choice:
    """One of each group of choices that make the same run: the method's own, where it is in it."""
    made, kept = dict(zip(entry.choices, runs, strict=True)), list[Any]()
    for choice in sorted(made, key=lambda choice: choice != own):
        if all(made[choice] != made[other] for other in kept):
            kept.append(choice)
    return entry.model_copy(update={"choices": tuple(choice for choice in entry.choices if choice in kept)})


def _runs(key: str, entry: Range, ranges: Mapping[str, Range], config: Config) -> list[list[Run]]:
    """What each value that tells makes of a configuration, under each of its conditions."""
    conditions = _conditions(entry, ranges)
    return [[_run(config.override({**each, key: value})) for each in conditions] for value in entry.tried]


def _conditions(entry: Range, ranges: Mapping[str, Range]) -> list[dict[str, Any]]:
    """Values of other settings with which one is drawn, those that the others need themselves among them."""
    found: list[dict[str, Any]] = [{}]
    for other, held in entry.when.items():
        needed = _conditions(ranges[other], ranges) if other in ranges else [{}]
        found = [{**each, **more, other: value} for each in found for more in needed for value in held]
    return found


def _moves_a_gate(method: Method, config: Config) -> bool:
    """Whether the modulator learns something, and a meta phase is there to teach it."""
    if method.inner is None or method.modulator.constant is not None:
        return False
    if "modulator" in config.own:
        return True
    tokens = {"text.0": torch.zeros(1, config.modulator.reduction)}  # as small as a gate takes them
    return bool(method.modulator.init(tokens, torch.Generator()))


def _run(config: Config) -> Run:
    method = build(config)
    others = {key: value for key, value in config.flat().items() if key.partition(".")[0] not in _PARTS}
    if method.prompts.num_context:
        others["prompts.init"] = config.prompts.init
    if not _moves_a_gate(method, config):
        others = {key: value for key, value in others.items() if not key.startswith("optim.gate_")}
    return method, others
