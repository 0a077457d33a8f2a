"""Custom distance: quadratic up to `delta`, linear beyond it, so large differences cost less than with l2.

# Search delta, and the weight of the distance between text features.
PYTHONPATH=examples prometar search --set regularizer.kind=huber:Huber --space examples/huber.yaml

# Train one run with the default delta, for which a function without settings suffices.
PYTHONPATH=examples prometar train --dataset cells --set regularizer.kind=huber:huber
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor


def huber(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances (N,) between prompted and frozen features, both (N, E), with the default delta."""
    return Huber()(a, b)


@dataclass(frozen=True)
class Huber:
    """Mean Huber loss over the E components of two features.

    Args:
        delta: Difference at which the loss becomes linear. It is the setting `regularizer.args.delta`.
    """

    delta: Annotated[float, Field(gt=0)] = 0.05

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the distances (N,) between prompted and frozen features, both (N, E)."""
        return F.huber_loss(a, b, reduction="none", delta=self.delta).mean(dim=-1)
