"""Averagers: which prompts a trained run is tested with, out of those at the ends of its epochs."""

from dataclasses import dataclass
from math import exp
from typing import Protocol

from prometar.methods.prompts import Leaves


class Averager(Protocol):
    """The average after a 0-based epoch of `epochs`, from the one before it and the epoch's prompts."""

    def __call__(self, average: Leaves, prompts: Leaves, epoch: int, epochs: int) -> Leaves: ...


@dataclass(frozen=True)
class Last:
    """Identity: the last epoch's prompts; nothing is kept beside them."""

    def __call__(self, average: Leaves, prompts: Leaves, epoch: int, epochs: int) -> Leaves:
        return {}


@dataclass(frozen=True)
class Gaussian:
    """sum_t w_t theta_t / sum_t w_t with w_t = exp(-(t / epochs - mean)^2 / (2 std^2)), t = 1 .. epochs.

    Args: mean, std as shares of the run, so that they hold for any number of epochs. Kept as a running mean,
    so that every epoch has an average to be scored with.
    Source: PromptSRC (ICCV 2023), Gaussian weighted prompt aggregation (released: epochs 15 and 1 of 20).
    """

    mean: float = 0.75
    std: float = 0.05

    def __call__(self, average: Leaves, prompts: Leaves, epoch: int, epochs: int) -> Leaves:
        if not average:
            return {name: leaf.clone() for name, leaf in prompts.items()}
        logs = [-0.5 * ((t / epochs - self.mean) / self.std) ** 2 for t in range(1, epoch + 2)]
        weights = [exp(log - max(logs)) for log in logs]
        share = weights[-1] / sum(weights)
        return {name: old + share * (prompts[name] - old) for name, old in average.items()}
