"""Custom distance: quadratic up to `delta`, linear beyond it, so large differences cost less than with l2.

PYTHONPATH=examples prometar search --set regularizer.kind=huber:Huber --space examples/huber.yaml
PYTHONPATH=examples prometar train --dataset cells --set regularizer.kind=huber:huber
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor


def huber(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances (N,) between prompted and frozen features, both (N, E), with delta = 0.05."""
    return Huber()(a, b)


@dataclass(frozen=True)
class Huber:
    """Distance whose `delta` is the setting `regularizer.args.delta`."""

    delta: Annotated[float, Field(gt=0)] = 0.05

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return F.huber_loss(a, b, reduction="none", delta=self.delta).mean(dim=-1)
