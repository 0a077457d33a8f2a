"""Attention blocks with derivatives: y = z + MLP(n_2(z)), z = x + A(n_1(x)), or A(n_1(x)) in pools."""

import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import Activation
from prometar.clip.attention import Attention
from prometar.clip.model import Block, Tower
from prometar.clip.part import Norm, Through


class Layer:
    """One pass through a block.

    It returns the first `num_out` of the T tokens of each row, or the tokens in the slots `ends` as
    (len(ends), D). All other tokens are only attended to.
    """

    def __init__(
        self,
        tower: Tower,
        block: Block,
        *,
        mask: Tensor | None = None,
        num_shared: int = 0,
        num_out: int | None = None,
        ends: Tensor | None = None,
    ) -> None:
        self._block, self._num_out, self._ends = block, num_out, ends
        self._residual = tower.residual
        self._norm_1 = Norm(block.ln_1_weight, block.ln_1_bias, tower.eps)
        self._attention = Attention(
            tower.num_heads, scale=tower.scale, mask=mask, num_shared=num_shared, num_queries=num_out
        )
        self._norm_2 = Norm(block.ln_2_weight, block.ln_2_bias, tower.eps)
        self._activation = Activation(tower.activation)

    def forward(self, x_BTD: Tensor, through: Through) -> Tensor:
        """Run the forward pass. `through` calls `Part.forward` or `Part.value`."""
        block = self._block
        self._rows = x_BTD.shape[:-1]
        h = F.linear(through(self._norm_1, x_BTD), block.in_proj_weight, block.in_proj_bias)
        h = F.linear(self._at_ends(through(self._attention, h)), block.out_proj_weight, block.out_proj_bias)
        x = self._at_ends(x_BTD[:, : self._num_out]) + h if self._residual else h
        h = F.linear(through(self._norm_2, x), block.c_fc_weight, block.c_fc_bias)
        return x + F.linear(through(self._activation, h), block.c_proj_weight, block.c_proj_bias)

    def jvp(self, t: Tensor) -> Tensor:
        block = self._block
        h = self._attention.jvp(F.linear(self._norm_1.jvp(t), block.in_proj_weight))
        pushed = F.linear(self._at_ends(h), block.out_proj_weight)
        t = self._at_ends(t[..., : self._num_out, :]) + pushed if self._residual else pushed
        h = self._activation.jvp(F.linear(self._norm_2.jvp(t), block.c_fc_weight))
        return t + F.linear(h, block.c_proj_weight)

    def reverse(self, g: Tensor, through: Through) -> tuple[Tensor, Tensor]:
        """Return cotangents of the first `num_out` tokens and the rest. `through` calls a reverse method."""
        block = self._block
        h = through(self._activation, g @ block.c_proj_weight)
        g = g + through(self._norm_2, h @ block.c_fc_weight)
        h = through(self._attention, self._spread(g @ block.out_proj_weight))
        g_x = through(self._norm_1, h @ block.in_proj_weight)
        num_out = g_x.shape[-2] if self._num_out is None else self._num_out
        own, rest = g_x[..., :num_out, :], g_x[..., num_out:, :]
        return own + self._spread(g) if self._residual else own, rest

    def _at_ends(self, x: Tensor) -> Tensor:
        return x if self._ends is None else x.flatten(-3, -2).index_select(-2, self._ends)

    def _spread(self, x: Tensor) -> Tensor:
        """Apply the transpose of `_at_ends` to cotangents."""
        if self._ends is None:
            return x
        rows, length = self._rows
        zeros = x.new_zeros(*x.shape[:-2], rows * length, x.shape[-1])
        return zeros.index_add(-2, self._ends, x).unflatten(-2, (rows, length))
