"""An objective of one's own: the lower of both accuracies, so that neither is bought with the other.

PYTHONPATH=examples python tune/search.py --objective worst:worst
PYTHONPATH=examples prometar train --objective worst:worst
"""

from collections.abc import Mapping


def worst(accuracies: Mapping[str, float]) -> float:
    """One number, more is better, of accuracies in percent; the images are those of `drift`."""
    return min(accuracies.values())
