"""One run of both towers, and its derivatives at the tokens: what the step needs of the backbone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vjp

from prometar.clip.tower import Pass
from prometar.methods.prompts import Leaves, layers


class Derived:
    """A text tower by torch's own derivatives: a `Pass` by token name.

    It sees the images: features (B, C, E).
    """

    def __init__(self, function: Callable[[Leaves], Tensor], tokens: Leaves) -> None:
        self._function, self._tokens = function, dict(tokens)
        self.features, self._pullback = vjp(function, self._tokens)  # type: ignore[misc]

    def vjp(self, g_KBCE: Tensor) -> Leaves:
        pulled = [self._pullback(g)[0] for g in g_KBCE]
        return {name: torch.stack([each[name] for each in pulled]) for name in self._tokens}

    def differentiable_vjp(self, g_KBCE: Tensor) -> Leaves:
        self._g_K = g_KBCE
        return self.vjp(g_KBCE)

    def jvp(self, tangents: Leaves) -> Tensor:
        self._t_K = [{name: tangents[name][k] for name in self._tokens} for k in range(len(self._g_K))]

        def transposed(g: Tensor) -> Leaves:
            return vjp(self._function, self._tokens)[1](g)[0]

        _, push = vjp(transposed, torch.zeros_like(self.features))  # type: ignore[misc]
        return torch.stack([push(t)[0] for t in self._t_K])

    def hvp(self, r_BCE: Tensor) -> Leaves:
        def whole(tokens: Leaves) -> Tensor:
            features, pullback = vjp(self._function, tokens)  # type: ignore[misc]
            total = (r_BCE * features).sum()
            for g, t in zip(self._g_K, self._t_K, strict=True):
                total = total + sum((t[name] * pulled).sum() for name, pulled in pullback(g)[0].items())
            return total

        return grad(whole)(self._tokens)


Run = Pass | Derived


@dataclass(frozen=True)
class Towers:
    """Un-normalised features by tower, `text` (C, E) and `vision` (B, E), and the runs that they come from.

    A tower without prompts has none of both; then its features, the text's normalised, are fixed.
    """

    dtype: torch.dtype
    runs: Mapping[str, Run]
    features: Leaves
    fixed_text_CE: Tensor | None
    fixed_image_BE: Tensor | None

    def both(self, features: Leaves) -> tuple[Tensor, Tensor]:
        """Normalised text features and un-normalised image features, given those that change."""
        text_CE, image_BE = self.fixed_text_CE, features.get("vision", self.fixed_image_BE)
        if "text" in features:
            text_CE = F.normalize(features["text"], dim=-1)
        assert text_CE is not None
        assert image_BE is not None
        return text_CE, image_BE

    def vjp(self, cotangents: Leaves) -> Leaves:
        """Map K cotangents of the features, each (K, N, E), to those of the tokens, each (K, P, D)."""
        return self._at_tokens(cotangents, lambda run, g: run.vjp(g))

    def differentiable_vjp(self, cotangents: Leaves) -> Leaves:
        """Return the same as `vjp`; `jvp` and then `hvp` can follow."""
        return self._at_tokens(cotangents, lambda run, g: run.differentiable_vjp(g))

    @torch.no_grad()
    def jvp(self, tangents: Leaves) -> Leaves:
        """Map K tangents of the tokens to those of the features; the inverse shapes of `vjp`."""
        pushed = {}
        for tower, run in self.runs.items():
            if isinstance(run, Pass):
                own = layers(tangents, tower)
                features = run.jvp({layer: tangent.to(self.dtype) for layer, tangent in own.items()})
            else:
                features = run.jvp(tangents)
            pushed[tower] = features.to(self.features[tower].dtype)
        return pushed

    def hvp(self, cotangents: Leaves) -> Leaves:
        """Gradients at the tokens, (P, D), of <r, features> + sum_k <g_k, J t_k>; r (N, E) by tower."""
        return self._at_tokens(cotangents, lambda run, r: run.hvp(r))

    @torch.no_grad()
    def _at_tokens(
        self, cotangents: Leaves, through: Callable[[Run, Tensor], Mapping[Any, Tensor]]
    ) -> Leaves:
        found: Leaves = {}
        for tower, run in self.runs.items():
            g = cotangents[tower]
            if isinstance(run, Pass):
                for layer, tensor in through(run, g.to(self.dtype)).items():
                    found[f"{tower}.{layer}"] = tensor.to(g.dtype)
            else:
                found |= {str(name): tensor for name, tensor in through(run, g).items()}
        return found
