"""A residual attention block as a value, and its derivatives: y = z + MLP(n_2(z)), z = x + A(n_1(x)).

Of a tower that pools by attention, z = A(n_1(x)).
"""

import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import Activation
from prometar.clip.attention import Attention
from prometar.clip.model import Block, Tower
from prometar.clip.norm import Norm


class Layer:
    """One pass through a block. After `forward`: `pull` K cotangents, `push` K tangents, then `second`.

    `second(r)` is the gradient of <r, y> + sum_k <g_k, J t_k>, g the pulled and t the pushed ones (which
    asks for `pull(..., again=True)`). Weights are constants: nothing is computed for them.

    Of the T tokens of a row the first `num_out` go on, or those in the slots `ends` alone, as (len(ends), D);
    the others are only attended to. A pull gives the cotangents of those that go on and of the rest.
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

    def forward(self, x_BTD: Tensor, *, fused: bool = False) -> Tensor:
        """`fused`: for the value alone, by torch's fused attention, and nothing is kept."""
        block, keep = self._block, not fused
        self._rows = x_BTD.shape[:-1]
        h = F.linear(self._norm_1.forward(x_BTD, keep=keep), block.in_proj_weight, block.in_proj_bias)
        h = self._attention.fused(h) if fused else self._attention.forward(h)
        h = F.linear(self._at_ends(h), block.out_proj_weight, block.out_proj_bias)
        x = self._at_ends(x_BTD[:, : self._num_out]) + h if self._residual else h
        h = F.linear(self._norm_2.forward(x, keep=keep), block.c_fc_weight, block.c_fc_bias)
        h = self._activation.forward(h, keep=keep)
        return x + F.linear(h, block.c_proj_weight, block.c_proj_bias)

    def pull(self, g: Tensor, *, again: bool) -> tuple[Tensor, Tensor]:
        block = self._block
        h = self._activation.pull(g @ block.c_proj_weight, again=again)
        g = g + self._norm_2.pull(h @ block.c_fc_weight, again=again)
        h = self._attention.pull(self._spread(g @ block.out_proj_weight), again=again)
        return self._with_residual(self._norm_1.pull(h @ block.in_proj_weight, again=again), g)

    def push(self, t: Tensor) -> Tensor:
        block = self._block
        h = self._attention.push(F.linear(self._norm_1.push(t), block.in_proj_weight))
        pushed = F.linear(self._at_ends(h), block.out_proj_weight)
        t = self._at_ends(t[..., : self._num_out, :]) + pushed if self._residual else pushed
        h = self._activation.push(F.linear(self._norm_2.push(t), block.c_fc_weight))
        return t + F.linear(h, block.c_proj_weight)

    def second(self, r: Tensor) -> tuple[Tensor, Tensor]:
        block = self._block
        h = self._activation.second(r @ block.c_proj_weight)
        r = r + self._norm_2.second(h @ block.c_fc_weight)
        h = self._attention.second(self._spread(r @ block.out_proj_weight))
        return self._with_residual(self._norm_1.second(h @ block.in_proj_weight), r)

    def _at_ends(self, x: Tensor) -> Tensor:
        return x if self._ends is None else x.flatten(-3, -2).index_select(-2, self._ends)

    def _spread(self, x: Tensor) -> Tensor:
        """The inverse of `_at_ends`, for cotangents."""
        if self._ends is None:
            return x
        rows, length = self._rows
        nothing = x.new_zeros(*x.shape[:-2], rows * length, x.shape[-1])
        return nothing.index_add(-2, self._ends, x).unflatten(-2, (rows, length))

    def _with_residual(self, whole: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        num_out = whole.shape[-2] if self._num_out is None else self._num_out
        own, rest = whole[..., :num_out, :], whole[..., num_out:, :]
        return own + self._spread(g) if self._residual else own, rest
