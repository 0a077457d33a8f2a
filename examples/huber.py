"""Custom distance: quadratic up to `delta`, linear above, so large changes of a few features cost less.

PYTHONPATH=examples prometar search --set regularizer.kind=huber:Huber --space examples/huber.yaml
PYTHONPATH=examples prometar train --dataset cells --set regularizer.kind=huber:huber
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor


def huber(a: Tensor, b: Tensor) -> Tensor:
    """Return the distances (N,) between rows of prompted and frozen features, both (N, E), for delta 0.05."""
    return Huber()(a, b)


@dataclass(frozen=True)
class Huber:
    """The same distance, with `delta` as the setting `regularizer.args.delta`."""

    delta: Annotated[float, Field(gt=0)] = 0.05

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return F.huber_loss(a, b, reduction="none", delta=self.delta).mean(dim=-1)
