"""A prompted tower as a function of its prompts, with both derivatives: what training calls.

Frozen weights and few learnable tokens make a case that general automatic differentiation does not know: no
gradient of a weight is needed, all cotangents and tangents of one pass can go through together, and for the
second derivative one more reverse pass serves all of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from prometar.clip.block import Layer
from prometar.clip.head import Part
from prometar.clip.norm import Norm

Prompts = Mapping[int, Tensor]
"""Learnable tokens by layer, each (P, D), or K cotangents or tangents of such, (K, P, D).

A layer without an entry keeps the tokens that reach it.
"""


class Slots(Protocol):
    """Where prompts stand among a tower's tokens."""

    def put(self, x: Tensor, prompt: Tensor) -> Tensor:
        """Tokens (..., B, T, D) with a prompt (..., P, D) among them."""
        ...

    def take(self, own: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Cotangents of the tokens and of the prompt, given those of `Layer.pull`."""
        ...


class Pass:
    """One run of a tower: features (N, E) of its prompts.

    After `forward`, `pull` gives J^T g_k for K cotangents. After `pull(..., again=True)`, `push` gives J t_k
    for K tangents, and then `second(r)` the gradient of <r, features> + sum_k <g_k, J t_k>. What is kept for
    them goes layer by layer, as soon as it has been used for the last time.

    `first`: what prompts of layer 0 go through; `end`: what makes features of the last tokens.
    """

    def __init__(
        self, layers: Iterable[Layer], slots: Slots, *, first: Norm | None = None, end: Sequence[Part]
    ) -> None:
        self._layers, self._slots = list(layers), slots
        self._first, self._end = first, end

    def forward(self, x_BTD: Tensor, prompts: Prompts, *, fused: bool = False) -> Tensor:
        """`fused`: by torch's fused attention, for the value alone."""
        self._size, self._prompted = x_BTD.shape, sorted(prompts)
        first, x = min(prompts, default=len(self._layers)), x_BTD
        for number, layer in enumerate(self._layers):
            if number in prompts:
                prompt = prompts[number]
                if number == 0 and self._first is not None:
                    prompt = self._first.forward(prompt)
                x = self._slots.put(x, prompt)
            # Nothing flows back below the first prompt.
            x = layer.forward(x, fused=fused or number < first)
        for part in self._end:
            x = part.forward(x)
        return x

    def pull(self, g_KNE: Tensor, *, again: bool = False) -> dict[int, Tensor]:
        def through(part: Any, g: Tensor) -> Any:
            return part.pull(g, again=again)

        return self._back(g_KNE, through, last=not again)

    def push(self, prompts: Prompts) -> Tensor:
        first = self._prompted[0]
        num_tangents = len(prompts[first])
        t = prompts[first].new_zeros(num_tangents, *self._size)
        for number, layer in enumerate(self._layers[first:], first):
            if number in prompts:
                prompt = prompts[number]
                if number == 0 and self._first is not None:
                    prompt = self._first.push(prompt)
                t = self._slots.put(t, prompt)
            t = layer.push(t)
        for part in self._end:
            t = part.push(t)
        return t

    def second(self, r_NE: Tensor) -> dict[int, Tensor]:
        return self._back(r_NE, lambda part, r: part.second(r), last=True)

    def _back(self, g: Tensor, through: Callable[[Any, Tensor], Any], *, last: bool) -> dict[int, Tensor]:
        for part in reversed(self._end):
            g = through(part, g)
        found: dict[int, Tensor] = {}
        for number in reversed(range(self._prompted[0], len(self._layers))):
            g, rest = through(self._layers[number], g)
            if number in self._prompted:
                g, prompt = self._slots.take(g, rest)
                if number == 0 and self._first is not None:
                    prompt = through(self._first, prompt)
                found[number] = prompt
            elif rest.shape[-2]:
                g = torch.cat([g, rest], dim=-2)
            if last:
                del self._layers[number]
        return found
