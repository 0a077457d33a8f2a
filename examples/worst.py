"""Custom objective: the lower of both accuracies, so that neither is gained at the expense of the other.

PYTHONPATH=examples prometar search --dataset cells --objective worst:worst
PYTHONPATH=examples prometar train --dataset cells --objective worst:worst
"""

from collections.abc import Mapping


def worst(accuracies: Mapping[str, float]) -> float:
    """Return one number of accuracies in percent. Higher is better. The images are those of `drift`."""
    return min(accuracies.values())
