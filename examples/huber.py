"""A regularizer distance: quadratic up to `delta`, linear beyond, so that few features may move far.

PYTHONPATH=examples python tune/search.py --set regularizer.kind=huber:Huber --space examples/huber.yaml
PYTHONPATH=examples prometar train --set regularizer.kind=huber:huber
"""

from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor


def huber(a: Tensor, b: Tensor) -> Tensor:
    """One distance a row, (N,), of features and frozen features (N, E); nothing to be set."""
    return Huber()(a, b)


@dataclass(frozen=True)
class Huber:
    """The same with its width as a setting, regularizer.args.delta."""

    delta: Annotated[float, Field(gt=0)] = 0.05

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return F.huber_loss(a, b, reduction="none", delta=self.delta).mean(dim=-1)
