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

    In an attention pool, z = attention(norm_1(x)), without the residual.

    The methods are those of a `TokenFunction`, except that `vjp`, `vjp_for_hvp` and `hvp` return the gradient
    of the input in two parts: that of the first `num_out` tokens of each row, and that of the rest.
    Residuals, cotangents and tangents have one entry per function, in the order norm_1, attention, norm_2,
    activation.

    Args:
        mask, num_shared: As in `Attention`.
        num_out: Number of leading tokens of each row that the layer returns. Default: all.
        out_slots: Slots of the tokens that the layer returns, as (len(out_slots), D). Slot b * T + t is
            token t of row b. Default: all. At most one of `num_out` and `out_slots` can be given.
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
        assert num_out is None or out_slots is None, "slots count all tokens of a row"
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
        maps = [partial(f.hvp, saved, g, t) for f, saved, g, t in groups]
        return self._pull_back(r, residuals.input_shape, *maps)

    def _apply(
        self, x_BTD: Tensor, norm_1: TokenMap, attention: TokenMap, norm_2: TokenMap, activation: TokenMap
    ) -> Tensor:
        block = self._block
        h = F.linear(norm_1(x_BTD), block.in_proj_weight, block.in_proj_bias)
        z = F.linear(self._select(attention(h)), block.out_proj_weight, block.out_proj_bias)
        if self._residual:
            z = self._select(x_BTD[:, : self._num_out]) + z
        h = F.linear(norm_2(z), block.c_fc_weight, block.c_fc_bias)
        return z + F.linear(activation(h), block.c_proj_weight, block.c_proj_bias)

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
        num_tokens = g_x.shape[-2]
        num_out = num_tokens if self._num_out is None else self._num_out
        g_first, g_rest = g_x.split([num_out, num_tokens - num_out], dim=-2)
        # Only the first `num_out` tokens are part of the residual sum, so the gradient of the rest lacks g.
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
        # A layer splits after `num_before` tokens only if the next layer has a prompt. Otherwise, it returns
        # all tokens or, if it is the last layer, fewer than `num_before`.
        if g_first.shape[-2] != self.num_before:
            g = torch.cat([g_first, g_rest], dim=-2)
            g_first, g_rest = g.tensor_split([self.num_before], dim=-2)
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
        """Split the first result of `Layer.vjp` into cotangents of all tokens, and of the prompt.

        `g_rest` is empty, because layers of packed texts have no `num_out`. `g_first`, which only the caller
        uses, is changed in place to save memory.
        """
        g_slots = g_first.select(-3, 0).narrow(-2, self.num_before, self.num_prompt)  # a view of g_first
        g_prompt = g_slots.clone()
        g_slots.zero_()  # `put` discarded the tokens in these slots, so their cotangents are 0
        return g_first, g_prompt


def appending_layers(tower: Tower, num_before: int, prompts: LayerPrompts, *, num_out: int) -> list[Layer]:
    """Return a tower's layers for `AppendedSlots`. The last layer returns `num_out` tokens per row."""
    counts: list[int | None] = []
    for next_layer in range(1, len(tower.blocks)):
        # A layer with a prompt discards earlier prompt tokens, so the previous layer need not return them.
        counts.append(num_before if next_layer in prompts else None)
    counts.append(num_out)
    return [Layer(tower, block, num_out=count) for block, count in zip(tower.blocks, counts, strict=True)]


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
        functions = [*self.layers[first:], *self.head]
        if first == 0 and self.prompt_norm is not None:
            functions.insert(0, self.prompt_norm)
        return functions

    def through_layers(self, x: Tensor, prompts: LayerPrompts, maps: Iterator[TokenMap]) -> Tensor:
        """Pass x through the layers from the first one with a prompt on.

        Each prompt is put into the input of its layer, at layer 0 after `prompt_norm`.

        Args:
            x: Input of the first layer with a prompt, or tangents of it.
            prompts: Prompts, or tangents of them.
            maps: Maps of `functions`. Those of `prompt_norm` and of the layers are taken, and those of the
                head remain.
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
        maps = [partial(f.vjp, saved) for f, saved in self._functions_with(self.residuals)]
        if release:
            self.residuals.clear()
        return self._pull_back(g_KNE, maps)

    def vjp_for_hvp(self, g_KNE: Tensor) -> tuple[dict[int, Tensor], list[Any]]:
        """Return the result of `vjp`, and what `hvp` requires of the cotangents."""
        functions = self._functions_with(self.residuals)
        maps, cotangents = recorded([partial(f.vjp_for_hvp, saved) for f, saved in functions])
        return self._pull_back(g_KNE, maps), cotangents

    def jvp(self, prompt_tangents: LayerPrompts) -> tuple[Tensor, list[Any]]:
        """Return the tangents of the features, and what `hvp` requires of the tangents."""
        functions = self._functions_with(self.residuals)
        maps, tangents = recorded([partial(f.jvp, saved) for f, saved in functions])
        remaining = iter(maps)
        first_tangents = prompt_tangents[self.prompted_layers[0]]
        num_tangents = len(first_tangents)
        zeros = first_tangents.new_zeros(num_tangents, *self.input_shape)  # the input does not vary
        t = self.tower.through_layers(zeros, prompt_tangents, remaining)
        return _through(remaining, t.flatten(1, -2)), tangents

    def hvp(
        self, cotangents: list[Any], tangents: list[Any], r_NE: Tensor, *, release: bool = False
    ) -> dict[int, Tensor]:
        functions = self._functions_with(self.residuals, cotangents, tangents)
        maps = [partial(f.hvp, saved, g, t) for f, saved, g, t in functions]
        if release:
            self.residuals.clear()
            cotangents.clear()
            tangents.clear()
        return self._pull_back(r_NE, maps)

    def _functions_with(self, *records: list[Any]) -> Iterator[tuple[Any, ...]]:
        """Yield each function of the pass with its entry in each list of `records`."""
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
