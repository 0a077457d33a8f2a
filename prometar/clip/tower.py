"""Prompted towers as functions of their prompts, with first and second derivatives.

Weights are frozen, so only derivatives with respect to prompts are computed, for K cotangents or tangents
together. A tower's input is B rows of T tokens of width D. A slot is the position of one token in a row.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableSequence, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import Activation
from prometar.clip.attention import Attention
from prometar.clip.function import AnyFunction, Norm, recorded
from prometar.clip.model import Block, Tower

LayerPrompts = Mapping[int, Tensor]
"""Prompts of P tokens (P, D) by layer number, or K cotangents or tangents of prompts (K, P, D).

A layer without an entry receives the output of the previous layer unchanged.
"""


TokenMap = Callable[[Tensor], Tensor]
"""Function of tokens, cotangents or tangents, such as the `vjp` of a `TokenFunction` for fixed residuals."""


class LayerResiduals(NamedTuple):
    """Residuals of a layer's functions (see `Layer`), and the shape (rows, tokens) of the layer's input."""

    functions: tuple[Any, ...]
    input_shape: torch.Size


class Layer:
    """Block with derivatives: z = x + attention(norm_1(x)), then y = z + MLP(norm_2(z)).

    In an attention pool, z = attention(norm_1(x)), without the residual. For `mask` and `num_shared`, see
    `Attention`. A layer returns the first `num_out` tokens of each row (default: all), or only the tokens in
    `out_slots`, as (len(out_slots), D). Slot b * T + t is token t of row b.

    The methods are those of a `TokenFunction`. The functions of a layer are norm_1, attention, norm_2 and
    activation. Residuals, cotangents and tangents contain those of each function.
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
        self._block = block
        self._num_out = num_out
        self._out_slots = out_slots
        self._residual = tower.residual
        attention = Attention(
            tower.num_heads, scale=tower.scale, mask=mask, num_shared=num_shared, num_queries=num_out
        )
        self._functions: tuple[AnyFunction, ...] = (
            Norm(block.ln_1_weight, block.ln_1_bias, tower.eps),
            attention,
            Norm(block.ln_2_weight, block.ln_2_bias, tower.eps),
            Activation(tower.activation),
        )

    def value(self, x_BTD: Tensor) -> Tensor:
        maps = [function.value for function in self._functions]
        return self._apply(x_BTD, *maps)

    def forward(self, x_BTD: Tensor) -> tuple[Tensor, LayerResiduals]:
        maps, residuals = recorded([function.forward for function in self._functions])
        y = self._apply(x_BTD, *maps)
        return y, LayerResiduals(tuple(residuals), x_BTD.shape[:-1])

    def vjp(self, residuals: LayerResiduals, g: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cotangents of the first `num_out` input tokens, and of the remaining input tokens."""
        pairs = zip(self._functions, residuals.functions, strict=True)
        maps = [partial(f.vjp, saved) for f, saved in pairs]
        return self._pull_back(g, residuals.input_shape, *maps)

    def vjp_for_hvp(
        self, residuals: LayerResiduals, g: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Any, ...]]:
        pairs = zip(self._functions, residuals.functions, strict=True)
        maps, cotangents = recorded([partial(f.vjp_for_hvp, saved) for f, saved in pairs])
        pulled = self._pull_back(g, residuals.input_shape, *maps)
        return pulled, tuple(cotangents)

    def jvp(self, residuals: LayerResiduals, t: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        pairs = zip(self._functions, residuals.functions, strict=True)
        maps, tangents = recorded([partial(f.jvp, saved) for f, saved in pairs])
        pushed = self._push_forward(t, *maps)
        return pushed, tuple(tangents)

    def hvp(
        self, residuals: LayerResiduals, cotangents: tuple[Any, ...], tangents: tuple[Any, ...], r: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the result of `TokenFunction.hvp`, split like that of `vjp`."""
        groups = zip(self._functions, residuals.functions, cotangents, tangents, strict=True)
        maps = [partial(f.hvp, *saved) for f, *saved in groups]
        return self._pull_back(r, residuals.input_shape, *maps)

    def _apply(
        self, x_BTD: Tensor, norm_1: TokenMap, attention: TokenMap, norm_2: TokenMap, activation: TokenMap
    ) -> Tensor:
        block = self._block
        h = F.linear(norm_1(x_BTD), block.in_proj_weight, block.in_proj_bias)
        h = F.linear(self._select(attention(h)), block.out_proj_weight, block.out_proj_bias)
        x = self._select(x_BTD[:, : self._num_out]) + h if self._residual else h
        h = F.linear(norm_2(x), block.c_fc_weight, block.c_fc_bias)
        return x + F.linear(activation(h), block.c_proj_weight, block.c_proj_bias)

    def _push_forward(
        self, t: Tensor, norm_1: TokenMap, attention: TokenMap, norm_2: TokenMap, activation: TokenMap
    ) -> Tensor:
        block = self._block
        h = self._select(attention(F.linear(norm_1(t), block.in_proj_weight)))
        if self._residual:
            t = _add_product(self._select(t[..., : self._num_out, :]), h, block.out_proj_weight.T)
        else:
            t = F.linear(h, block.out_proj_weight)
        h = activation(F.linear(norm_2(t), block.c_fc_weight))
        return _add_product(t, h, block.c_proj_weight.T)

    def _pull_back(
        self,
        g: Tensor,
        input_shape: torch.Size,
        norm_1: TokenMap,
        attention: TokenMap,
        norm_2: TokenMap,
        activation: TokenMap,
    ) -> tuple[Tensor, Tensor]:
        block = self._block
        h = activation(g @ block.c_proj_weight)
        g = g + norm_2(h @ block.c_fc_weight)
        h = attention(self._spread(g @ block.out_proj_weight, input_shape))
        g_x = norm_1(h @ block.in_proj_weight)
        num_out = g_x.shape[-2] if self._num_out is None else self._num_out
        g_first, g_rest = g_x.split([num_out, g_x.shape[-2] - num_out], dim=-2)
        if self._residual:
            g_first = g_first + self._spread(g, input_shape)
        return g_first, g_rest

    def _select(self, x: Tensor) -> Tensor:
        return x if self._out_slots is None else x.flatten(-3, -2).index_select(-2, self._out_slots)

    def _spread(self, x: Tensor, input_shape: torch.Size) -> Tensor:
        """Put cotangents into the output slots, and zeros elsewhere (transpose of `_select`)."""
        if self._out_slots is None:
            return x
        rows, length = input_shape
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
        """Split the results of `Layer.vjp` into cotangents of the first tokens, and of the prompt."""
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


@dataclass(frozen=True)
class PromptedTower:
    """Function from prompts to features (N, E) of N images or texts, given the input tokens of a tower.

    `prompt_norm` normalizes the prompt of layer 0. `head` maps the last layer's output to features.
    """

    layers: Sequence[Layer]
    slots: AppendedSlots | ReplacedSlots
    head: Sequence[AnyFunction]
    prompt_norm: Norm | None = None

    def value(self, x_BTD: Tensor, prompts: LayerPrompts) -> Tensor:
        """Compute the features with torch's fused attention."""
        maps = iter([function.value for function in self.functions(prompts)])
        x = self.through_layers(self._before_prompts(x_BTD, prompts), prompts, maps)
        return _through(maps, x.flatten(0, -2))

    def forward(self, x_BTD: Tensor, prompts: LayerPrompts) -> tuple[Tensor, "Pass"]:
        """Return the features, and the `Pass` that computes their derivatives."""
        maps, residuals = recorded([function.forward for function in self.functions(prompts)])
        remaining = iter(maps)
        x = self.through_layers(self._before_prompts(x_BTD, prompts), prompts, remaining)
        features = _through(remaining, x.flatten(0, -2))
        return features, Pass(self, tuple(sorted(prompts)), x_BTD.shape, x.shape[:-1], residuals)

    def functions(self, prompted: Iterable[int]) -> list[Any]:
        """Return the functions from the first prompt to the features, in the order of the forward pass."""
        first = self._first(prompted)
        prompt_norms = [self.prompt_norm] if first == 0 and self.prompt_norm is not None else []
        return [*prompt_norms, *self.layers[first:], *self.head]

    def through_layers(self, x: Tensor, prompts: LayerPrompts, maps: Iterator[TokenMap]) -> Tensor:
        """Apply a map for each layer from the first prompt on. `x`: input of that layer, or its tangents.

        Prompts and their norm, or tangents of both, enter the input of their layer.
        """
        for number in range(self._first(prompts), len(self.layers)):
            if number in prompts:
                prompt = prompts[number]
                if number == 0 and self.prompt_norm is not None:
                    prompt = next(maps)(prompt)
                x = self.slots.put(x, prompt)
            x = next(maps)(x)
        return x

    def _before_prompts(self, x: Tensor, prompts: LayerPrompts) -> Tensor:
        """Apply the layers before the first prompt, which need no derivatives."""
        for layer in self.layers[: self._first(prompts)]:
            x = layer.value(x)
        return x

    def _first(self, prompted: Iterable[int]) -> int:
        return min(prompted, default=len(self.layers))


@dataclass(frozen=True)
class Pass:
    """Forward pass of a tower with prompts, and its derivatives, as in `TokenFunction`.

    The derivatives are pure functions. With `release=True`, a caller hands over the residuals (and the
    cotangents and tangents of `hvp`). Those of a layer are then freed after their use, which limits the
    memory of the reverse pass. No derivative can be computed from them again.

    Args:
        input_shape: Shape (B, T, D) of the input tokens.
        output_shape: Shape of the last layer's output, without the width.
        residuals: Residuals of `PromptedTower.functions`.
    """

    tower: PromptedTower
    prompted_layers: tuple[int, ...]
    input_shape: torch.Size
    output_shape: torch.Size
    residuals: list[Any]

    def vjp(self, g_KNE: Tensor, *, release: bool = False) -> dict[int, Tensor]:
        maps = [partial(f.vjp, *saved) for f, *saved in self._functions_with(self.residuals)]
        if release:
            self.residuals.clear()
        return self._pull_back(g_KNE, maps)

    def vjp_for_hvp(self, g_KNE: Tensor) -> tuple[dict[int, Tensor], list[Any]]:
        """Return the result of `vjp`, and what `hvp` requires of the cotangents."""
        functions = self._functions_with(self.residuals)
        maps, cotangents = recorded([partial(f.vjp_for_hvp, *saved) for f, *saved in functions])
        return self._pull_back(g_KNE, maps), cotangents

    def jvp(self, prompt_tangents: LayerPrompts) -> tuple[Tensor, list[Any]]:
        """Return the tangents of the features, and what `hvp` requires of the tangents."""
        functions = self._functions_with(self.residuals)
        maps, tangents = recorded([partial(f.jvp, *saved) for f, *saved in functions])
        remaining = iter(maps)
        first = prompt_tangents[self.prompted_layers[0]]
        t = self.tower.through_layers(
            first.new_zeros(len(first), *self.input_shape), prompt_tangents, remaining
        )
        return _through(remaining, t.flatten(1, -2)), tangents

    def hvp(
        self, cotangents: list[Any], tangents: list[Any], r_NE: Tensor, *, release: bool = False
    ) -> dict[int, Tensor]:
        functions = self._functions_with(self.residuals, cotangents, tangents)
        maps = [partial(f.hvp, *saved) for f, *saved in functions]
        if release:
            for records in (self.residuals, cotangents, tangents):
                records.clear()
        return self._pull_back(r_NE, maps)

    def _functions_with(self, *records: list[Any]) -> Iterator[tuple[Any, ...]]:
        assert self.residuals, "the residuals of this pass have been released"
        return zip(self.tower.functions(self.prompted_layers), *records, strict=True)

    def _pull_back(self, g: Tensor, maps: MutableSequence[Any]) -> dict[int, Tensor]:
        """Return the cotangents of the prompts. Each map is removed when it is used, to free its tensors."""
        tower = self.tower
        for _ in tower.head:
            g = maps.pop()(g)
        g = g.unflatten(-2, self.output_shape)
        cotangents: dict[int, Tensor] = {}
        for number in reversed(range(self.prompted_layers[0], len(tower.layers))):
            g, g_rest = maps.pop()(g)
            if number in self.prompted_layers:
                g, g_prompt = tower.slots.take(g, g_rest)
                if number == 0 and tower.prompt_norm is not None:
                    g_prompt = maps.pop()(g_prompt)
                cotangents[number] = g_prompt
            elif g_rest.shape[-2]:
                g = torch.cat([g, g_rest], dim=-2)
        return cotangents


def _through(maps: Iterator[TokenMap], x: Tensor) -> Tensor:
    for each in maps:
        x = each(x)
    return x


def _add_product(x: Tensor, h: Tensor, matrix: Tensor) -> Tensor:
    """Return x + h @ matrix. `torch.addmm` saves a kernel, but accepts only two dimensions."""
    return torch.addmm(x.flatten(0, -2), h.flatten(0, -2), matrix).view(x.shape)
