"""LayerNorm of the towers, in float32 where float16 is too narrow for its second derivative."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x_TD: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the last dimension, (..., D), in and out in the precision of x.

    Its second derivative holds the cube of 1 / sigma: in float16 it overflows for sigma below 0.025, which
    token embeddings have. So float16 is widened, as torch.autocast does.
    """
    if x_TD.dtype is not torch.float16:
        return F.layer_norm(x_TD, x_TD.shape[-1:], weight, bias)
    return F.layer_norm(x_TD.float(), x_TD.shape[-1:], weight.float(), bias.float()).to(x_TD.dtype)
