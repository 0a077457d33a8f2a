"""What runs are called where they are compared: by method, and by settings where one method has several."""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from prometar.config.settings import Config
from prometar.errors import one_line

_MOST_SETTINGS = 3  # that a label names; it has a digest instead where more differ
_DIGITS = 6


def labels(configs: Sequence[Config]) -> tuple[list[str], list[str]]:
    """A label for each configuration, equal for those that differ in data and seed alone; and their meanings.

    The label is the method. Where a method comes with several settings it is followed by those that differ,
    or by a digest of all; the differing ones are then its meaning.

    Example:
        >>> coop, vpt = Config(method="coop"), Config(method="vpt")
        >>> labels([coop, vpt, vpt.override({"optim.lr": 0.1})])[0]
        ['coop', 'vpt optim.lr=0.0025', 'vpt optim.lr=0.1']
    """
    settings = {_key(config): _settings(config) for config in configs}
    found, meanings = {}, []
    for key, own in settings.items():
        others = [other for other in settings.values() if other["method"] == own["method"]]
        differing = [name for name in own if any(other.get(name) != own[name] for other in others)]
        said = ", ".join(f"{name}={own[name]}" for name in differing)
        if len(differing) > _MOST_SETTINGS:
            digest = hashlib.sha256(key.encode()).hexdigest()[:_DIGITS]
            found[key] = one_line(f"{own['method']} #{digest}")
            meanings.append(one_line(f"{own['method']} #{digest}: {said}"))
        else:
            found[key] = one_line(f"{own['method']} {said}")
    return [found[_key(config)] for config in configs], meanings


def _key(config: Config) -> str:
    return json.dumps(_settings(config), sort_keys=True)


def _settings(config: Config) -> dict[str, Any]:
    """All but which images and which seed, by dotted key."""
    flat = config.flat()
    images = {name for name in flat if name.startswith("data.") and name != "data.shots"}
    return {name: value for name, value in flat.items() if name not in {*images, "train.seed"}}
