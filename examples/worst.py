"""Custom objective: the lower of base and new accuracy, so a search cannot trade one for the other.

# Search the settings with the highest score.
PYTHONPATH=examples prometar search --dataset cells --objective worst:worst

# Train one run, which reports the score after each epoch.
PYTHONPATH=examples prometar train --dataset cells --objective worst:worst
"""

from collections.abc import Mapping


def worst(accuracies: Mapping[str, float]) -> float:
    """Return the score of a run (higher is better), given its "base" and "new" accuracies in %."""
    return min(accuracies.values())
