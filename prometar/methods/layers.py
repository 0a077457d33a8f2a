"""Layer ranges such as "6-12", as written in settings, and their layers in towers of other depths."""

from typing import Annotated

from pydantic import AfterValidator

_MAX_LAYER = 1000
"""Largest number of a layer, to limit the length of a range."""


def parse_layers(text: str) -> tuple[int, ...]:
    """Return the layer numbers of a range, sorted. Layers are numbered from 1, as in papers.

    Raises:
        ValueError: the text is not a list of numbers and ranges, or contains a number below 1 or above 1000.

    Example:
        >>> parse_layers("2,5-7")
        (2, 5, 6, 7)
    """
    layers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(f"layers must be numbers and ranges such as 6-12 or 2,4-5, got '{text}'")
        first_layer = int(first)
        last_layer = int(last) if dash else first_layer
        if first_layer < 1 or last_layer < first_layer:
            raise ValueError(f"layers are numbered from 1, and a range must not be empty, got '{text}'")
        if last_layer > _MAX_LAYER:
            raise ValueError(f"layers must be at most {_MAX_LAYER}, got '{text}'")
        layers.update(range(first_layer, last_layer + 1))
    return tuple(sorted(layers))


def layers_in_tower(text: str, num_layers: int) -> dict[int, int]:
    """Return the index in the tower (from 0) of each layer of a range, keyed by the layer's number (from 1).

    If the tower has fewer layers than the last number of the range, the range moves down until it ends at the
    tower's last layer. Layers that would lie below the first one are dropped. For example, "6-12" becomes all
    layers of a tower of four.

    Example:
        >>> layers_in_tower("6-8", 12)
        {6: 5, 7: 6, 8: 7}
        >>> layers_in_tower("6-8", 2)
        {7: 0, 8: 1}
    """
    layers = parse_layers(text)
    shift = max(0, layers[-1] - num_layers)
    return {layer: layer - shift - 1 for layer in layers if layer > shift}


def _checked(text: str) -> str:
    parse_layers(text)
    return text


LayerRange = Annotated[str, AfterValidator(_checked)]
"""Setting that contains a layer range."""
