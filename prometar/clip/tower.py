"""Prompted towers as functions of their prompts, with first and second derivatives.

Weights are frozen, so only derivatives with respect to prompts are computed, for K cotangents or tangents
together. A tower's input is B rows of T tokens of width D. A slot is the position of one token in a row.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import Activation
from prometar.clip.attention import Attention
from prometar.clip.function import FunctionCall, Norm, TokenFunction
from prometar.clip.model import Block, Tower

LayerPrompts = Mapping[int, Tensor]
"""Prompts of P tokens (P, D) by layer number, or K cotangents or tangents of prompts (K, P, D).

A layer without an entry receives the output of the previous layer unchanged.
"""


class Layer:
    """Block with derivatives: z = x + attention(norm_1(x)), then y = z + MLP(norm_2(z)).

    In an attention pool, z = attention(norm_1(x)), without the residual. For `mask` and `num_shared`, see
    `Attention`. A layer returns the first `num_out` tokens of each row (default: all), or only the tokens in
    `out_slots`, as (len(out_slots), D). Slot b * T + t is token t of row b.
    """

    def __init__(
        self,
        tower: Tower,
        block: Block,
        *,
        mask: Tensor | None = None,
        num_shared: int = 0,
        num_out: int | None = None,
        out_slots: Tensor | None = None,
    ) -> None:
        self._block, self._num_out, self._out_slots = block, num_out, out_slots
        self._residual = tower.residual
        self._norm_1 = Norm(block.ln_1_weight, block.ln_1_bias, tower.eps)
        self._attention = Attention(
            tower.num_heads, scale=tower.scale, mask=mask, num_shared=num_shared, num_queries=num_out
        )
        self._norm_2 = Norm(block.ln_2_weight, block.ln_2_bias, tower.eps)
        self._activation = Activation(tower.activation)

    def forward(self, x_BTD: Tensor, apply: FunctionCall) -> Tensor:
        """Run the forward pass. `apply` calls `TokenFunction.forward` or `TokenFunction.value`."""
        block = self._block
        self._input_shape = x_BTD.shape[:-1]
        h = F.linear(apply(self._norm_1, x_BTD), block.in_proj_weight, block.in_proj_bias)
        h = F.linear(self._select(apply(self._attention, h)), block.out_proj_weight, block.out_proj_bias)
        x = self._select(x_BTD[:, : self._num_out]) + h if self._residual else h
        h = F.linear(apply(self._norm_2, x), block.c_fc_weight, block.c_fc_bias)
        return x + F.linear(apply(self._activation, h), block.c_proj_weight, block.c_proj_bias)

    def jvp(self, t: Tensor) -> Tensor:
        block = self._block
        h = self._attention.jvp(F.linear(self._norm_1.jvp(t), block.in_proj_weight))
        h = F.linear(self._select(h), block.out_proj_weight)
        t = self._select(t[..., : self._num_out, :]) + h if self._residual else h
        h = self._activation.jvp(F.linear(self._norm_2.jvp(t), block.c_fc_weight))
        return t + F.linear(h, block.c_proj_weight)

    def reverse(self, g: Tensor, apply: FunctionCall) -> tuple[Tensor, Tensor]:
        """Return the cotangents of the first `num_out` input tokens, and of the remaining input tokens.

        `apply` calls `TokenFunction.vjp`, `vjp_for_hvp` or `hvp`.
        """
        block = self._block
        h = apply(self._activation, g @ block.c_proj_weight)
        g = g + apply(self._norm_2, h @ block.c_fc_weight)
        h = apply(self._attention, self._spread(g @ block.out_proj_weight))
        g_x = apply(self._norm_1, h @ block.in_proj_weight)
        num_out = g_x.shape[-2] if self._num_out is None else self._num_out
        g_first, g_rest = g_x[..., :num_out, :], g_x[..., num_out:, :]
        return g_first + self._spread(g) if self._residual else g_first, g_rest

    def _select(self, x: Tensor) -> Tensor:
        return x if self._out_slots is None else x.flatten(-3, -2).index_select(-2, self._out_slots)

    def _spread(self, x: Tensor) -> Tensor:
        """Put cotangents into the output slots, and zeros elsewhere (transpose of `_select`)."""
        if self._out_slots is None:
            return x
        rows, length = self._input_shape
        zeros = x.new_zeros(*x.shape[:-2], rows * length, x.shape[-1])
        return zeros.index_add(-2, self._out_slots, x).unflatten(-2, (rows, length))


@dataclass(frozen=True)
class AppendedSlots:
    """Prompt slots after the first `num_before` tokens of every row."""

    num_before: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Return the first `num_before` tokens of rows (..., B, T, D), followed by a prompt (..., P, D)."""
        before = x[..., : self.num_before, :]
        prompts = prompt.unsqueeze(-3).expand(*before.shape[:-2], *prompt.shape[-2:])
        return torch.cat([before, prompts], dim=-2)

    def take(self, g_first: Tensor, g_rest: Tensor) -> tuple[Tensor, Tensor]:
        """Split the results of `Layer.reverse` into cotangents of the first tokens, and of the prompt."""
        if g_first.shape[-2] != self.num_before:
            g_first, g_rest = torch.cat([g_first, g_rest], dim=-2).tensor_split([self.num_before], dim=-2)
        return g_first, g_rest.sum(dim=-3)


@dataclass(frozen=True)
class ReplacedSlots:
    """Prompts in slots of row 0, which starts with the tokens that all packed texts share (`text_input`)."""

    num_before: int
    num_prompt: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        flat = x.flatten(-3, -2)
        parts = [flat[..., : self.num_before, :], prompt, flat[..., self.num_before + self.num_prompt :, :]]
        return torch.cat(parts, dim=-2).unflatten(-2, x.shape[-3:-1])

    def take(self, g_first: Tensor, g_rest: Tensor) -> tuple[Tensor, Tensor]:
        g_slots = g_first.select(-3, 0).narrow(-2, self.num_before, self.num_prompt)
        g_prompt = g_slots.clone()
        g_slots.zero_()  # because `put` discarded the tokens in these slots
        return g_first, g_prompt


def appending_layers(tower: Tower, num_before: int, prompts: LayerPrompts, *, num_out: int) -> list[Layer]:
    """Return a tower's layers for `AppendedSlots`. The last layer returns `num_out` tokens per row."""
    # A layer with a prompt discards earlier prompt tokens, so the previous layer need not return them.
    counts = [num_before if number in prompts else None for number in range(1, len(tower.blocks))]
    blocks = zip(tower.blocks, [*counts, num_out], strict=True)
    return [Layer(tower, block, num_out=count) for block, count in blocks]


class Pass:
    """A pass from prompts to features (N, E) of N images or texts, with `TokenFunction`'s derivatives.

    `vjp` and `hvp` free the layers, so no other method can be called after them.
    `prompt_norm` normalizes the prompt of layer 0. `head` maps the last layer's output to features.
    """

    def __init__(
        self,
        layers: list[Layer],
        slots: AppendedSlots | ReplacedSlots,
        *,
        prompt_norm: Norm | None = None,
        head: Sequence[TokenFunction],
    ) -> None:
        self._layers, self._slots, self._prompt_norm, self._head = layers, slots, prompt_norm, head

    def value(self, x_BTD: Tensor, prompts: LayerPrompts) -> Tensor:
        """Compute the features with torch's fused attention. Store nothing for derivatives."""
        return self._forward(x_BTD, prompts, _value)

    def forward(self, x_BTD: Tensor, prompts: LayerPrompts) -> Tensor:
        self._input_shape, self._prompted_layers = x_BTD.shape, sorted(prompts)
        return self._forward(x_BTD, prompts, lambda f, x: f.forward(x))

    def _forward(self, x: Tensor, prompts: LayerPrompts, apply: FunctionCall) -> Tensor:
        first = min(prompts, default=len(self._layers))
        for number, layer in enumerate(self._layers):
            if number in prompts:
                prompt = prompts[number]
                if number == 0 and self._prompt_norm is not None:
                    prompt = apply(self._prompt_norm, prompt)
                x = self._slots.put(x, prompt)
            # Layers before the first prompt need no derivatives.
            x = layer.forward(x, _value if number < first else apply)
        self._output_shape = x.shape[:-1]
        x = x.flatten(0, -2)
        for function in self._head:
            x = apply(function, x)
        return x

    def vjp(self, g_KNE: Tensor) -> dict[int, Tensor]:
        return self._reverse(g_KNE, lambda f, g: f.vjp(g), self._layers.pop)  # pop frees stored tensors

    def vjp_for_hvp(self, g_KNE: Tensor) -> dict[int, Tensor]:
        return self._reverse(g_KNE, lambda f, g: f.vjp_for_hvp(g), self._layers.__getitem__)

    def jvp(self, tangents: LayerPrompts) -> Tensor:
        first = self._prompted_layers[0]
        t = tangents[first].new_zeros(len(tangents[first]), *self._input_shape)
        for number, layer in enumerate(self._layers[first:], first):
            if number in tangents:
                tangent = tangents[number]
                if number == 0 and self._prompt_norm is not None:
                    tangent = self._prompt_norm.jvp(tangent)
                t = self._slots.put(t, tangent)
            t = layer.jvp(t)
        t = t.flatten(1, -2)
        for function in self._head:
            t = function.jvp(t)
        return t

    def hvp(self, r_NE: Tensor) -> dict[int, Tensor]:
        return self._reverse(r_NE, lambda f, r: f.hvp(r), self._layers.pop)

    def _reverse(self, g: Tensor, apply: FunctionCall, layer_at: Callable[[int], Layer]) -> dict[int, Tensor]:
        for function in reversed(self._head):
            g = apply(function, g)
        g = g.unflatten(-2, self._output_shape)
        cotangents: dict[int, Tensor] = {}
        for number in reversed(range(self._prompted_layers[0], len(self._layers))):
            g, g_rest = layer_at(number).reverse(g, apply)
            if number in self._prompted_layers:
                g, g_prompt = self._slots.take(g, g_rest)
                if number == 0 and self._prompt_norm is not None:
                    g_prompt = apply(self._prompt_norm, g_prompt)
                cotangents[number] = g_prompt
            elif g_rest.shape[-2]:
                g = torch.cat([g, g_rest], dim=-2)
        return cotangents


def _value(function: TokenFunction, x: Tensor) -> Tensor:
    return function.value(x)
