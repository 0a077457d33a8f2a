"""Averagers combine the prompts of the epochs so far into the prompts for evaluation."""

from math import exp
from typing import Literal

from pydantic import Field

from prometar.methods.prompts import Leaves
from prometar.methods.section import ComponentSection, Kinds


class Last(ComponentSection):
    """No average. The prompts of the last epoch are evaluated."""

    kind: Literal["last"] = "last"

    def __call__(self, average: Leaves, prompts: Leaves, epoch: int, epochs: int) -> Leaves:
        """Return {}, so that the `prompts` of the epoch are evaluated without averaging.

        Other averagers return the average after `epoch`, which counts from 0. `average` is their result of
        the epoch before, or {} in epoch 0.
        """
        return {}


class Gaussian(ComponentSection):
    """Average sum_t w_t theta_t / sum_t w_t over the epochs so far, t = 1, 2, ...

    theta_t: prompts after epoch t of `epochs`. w_t = exp(-(t / epochs - mean)^2 / (2 std^2)).
    Source: PromptSRC (ICCV 2023), Gaussian weighted prompt aggregation (published: mean 15/20, std 1/20).
    """

    kind: Literal["gaussian"] = "gaussian"
    mean: float = Field(default=0.75, ge=0, le=100)
    std: float = Field(default=0.05, ge=1e-4)

    def __call__(self, average: Leaves, prompts: Leaves, epoch: int, epochs: int) -> Leaves:
        if not average:
            return {name: leaf.clone() for name, leaf in prompts.items()}
        log_weights = [-0.5 * ((t / epochs - self.mean) / self.std) ** 2 for t in range(1, epoch + 2)]
        weights = [exp(log - max(log_weights)) for log in log_weights]  # exp(log) alone may underflow to 0
        share_of_epoch = weights[-1] / sum(weights)
        # Updating the average gives the weighted mean, but needs no prompts of earlier epochs.
        return {name: old + share_of_epoch * (prompts[name] - old) for name, old in average.items()}


Averager = Last | Gaussian
AVERAGERS = Kinds({"last": Last, "gaussian": Gaussian}, default="last")
