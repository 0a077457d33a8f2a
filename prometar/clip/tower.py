"""A prompted tower as a function of its prompts, with both derivatives: what training calls.

Frozen weights and few learnable tokens are a case that general automatic differentiation does not exploit. No
gradient of a weight is needed, all cotangents and tangents of one pass go through together, and one more
reverse pass gives the second derivative of all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prometar.clip.block import Layer
from prometar.clip.model import Tower
from prometar.clip.part import Norm, Part, Through

Prompts = Mapping[int, Tensor]
"""Learnable tokens by layer, each (P, D), or K cotangents or tangents of such, (K, P, D).

A layer without an entry keeps the tokens that reach it.
"""


@dataclass(frozen=True)
class Appended:
    """Slots of all rows after their `num_own` own tokens."""

    num_own: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Return tokens (..., B, T, D) with a prompt (..., P, D) among them."""
        own = x[..., : self.num_own, :]
        behind = prompt.unsqueeze(-3).expand(*own.shape[:-2], *prompt.shape[-2:])
        return torch.cat([own, behind], dim=-2)

    def take(self, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Return cotangents of the tokens and of the prompt, given those of `Layer.reverse`."""
        if own.shape[-2] != self.num_own:
            own, rest = torch.cat([own, rest], dim=-2).tensor_split([self.num_own], dim=-2)
        return own, rest.sum(dim=-3)


@dataclass(frozen=True)
class Replaced:
    """Slots of row 0 after the `first` ones."""

    first: int
    num: int

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        flat = x.flatten(-3, -2)
        parts = [flat[..., : self.first, :], prompt, flat[..., self.first + self.num :, :]]
        return torch.cat(parts, dim=-2).unflatten(-2, x.shape[-3:-1])

    def take(self, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        slots = own.select(-3, 0).narrow(-2, self.first, self.num)
        prompt = slots.clone()
        slots.zero_()
        return own, prompt


def appending_layers(tower: Tower, num_own: int, prompts: Prompts, *, num_out: int) -> list[Layer]:
    """Return the layers of a tower with `Appended` prompts, which returns `num_out` tokens."""
    # The number of each block's tokens that the next one reads; None for all.
    nums = [num_own if number in prompts else None for number in range(1, len(tower.blocks))]
    return [
        Layer(tower, block, num_out=num) for block, num in zip(tower.blocks, [*nums, num_out], strict=True)
    ]


class Pass:
    """One run of a tower: features (N, E) of its prompts, and their derivatives as of a `Part`.

    first: Applied to prompts of layer 0. end: Makes features of the last tokens.
    """

    def __init__(
        self,
        layers: list[Layer],
        slots: Appended | Replaced,
        *,
        first: Norm | None = None,
        end: Sequence[Part],
    ) -> None:
        self._layers, self._slots = layers, slots
        self._first, self._end = first, end

    def value(self, x_BTD: Tensor, prompts: Prompts) -> Tensor:
        """Return the features by torch's fused attention; no derivatives can follow."""
        return self._forward(x_BTD, prompts, _value)

    def forward(self, x_BTD: Tensor, prompts: Prompts) -> Tensor:
        self._size, self._prompted = x_BTD.shape, sorted(prompts)
        return self._forward(x_BTD, prompts, lambda part, x: part.forward(x))

    def _forward(self, x: Tensor, prompts: Prompts, through: Through) -> Tensor:
        first = min(prompts, default=len(self._layers))
        for number, layer in enumerate(self._layers):
            if number in prompts:
                prompt = prompts[number]
                if number == 0 and self._first is not None:
                    prompt = through(self._first, prompt)
                x = self._slots.put(x, prompt)
            # Nothing flows back below the first prompt.
            x = layer.forward(x, _value if number < first else through)
        self._last = x.shape[:-1]
        x = x.flatten(0, -2)
        for part in self._end:
            x = through(part, x)
        return x

    def vjp(self, g_KNE: Tensor) -> dict[int, Tensor]:
        # The last use of each layer frees what it stores.
        return self._reverse(g_KNE, lambda part, g: part.vjp(g), self._layers.pop)

    def differentiable_vjp(self, g_KNE: Tensor) -> dict[int, Tensor]:
        at = self._layers.__getitem__
        return self._reverse(g_KNE, lambda part, g: part.differentiable_vjp(g), at)

    def jvp(self, prompts: Prompts) -> Tensor:
        first = self._prompted[0]
        num_tangents = len(prompts[first])
        t = prompts[first].new_zeros(num_tangents, *self._size)
        for number, layer in enumerate(self._layers[first:], first):
            if number in prompts:
                prompt = prompts[number]
                if number == 0 and self._first is not None:
                    prompt = self._first.jvp(prompt)
                t = self._slots.put(t, prompt)
            t = layer.jvp(t)
        t = t.flatten(1, -2)
        for part in self._end:
            t = part.jvp(t)
        return t

    def hvp(self, r_NE: Tensor) -> dict[int, Tensor]:
        return self._reverse(r_NE, lambda part, r: part.hvp(r), self._layers.pop)

    def _reverse(self, g: Tensor, through: Through, layer_at: Callable[[int], Layer]) -> dict[int, Tensor]:
        for part in reversed(self._end):
            g = through(part, g)
        g = g.unflatten(-2, self._last)
        found: dict[int, Tensor] = {}
        for number in reversed(range(self._prompted[0], len(self._layers))):
            g, rest = layer_at(number).reverse(g, through)
            if number in self._prompted:
                g, prompt = self._slots.take(g, rest)
                if number == 0 and self._first is not None:
                    prompt = through(self._first, prompt)
                found[number] = prompt
            elif rest.shape[-2]:
                g = torch.cat([g, rest], dim=-2)
        return found


def _value(part: Part, x: Tensor) -> Tensor:
    return part.value(x)
