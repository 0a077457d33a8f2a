"""Forward passes through CLIP's towers, and derivatives of their features with respect to prompt tokens.

Shape suffixes: K cotangents or tangents, P tokens of width D, B images, C classes, N features of width E.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vjp

from prometar.clip.tower import Pass
from prometar.methods.prompts import Tensors, tokens_by_layer


class AutodiffPass:
    """Pass through the text tower with conditional prompts. Its features are (B, C, E).

    It has the derivative methods of `Pass`, computed by torch.func. Tokens are keyed by name, not by layer.
    """

    def __init__(self, function: Callable[[Tensors], Tensor], tokens: Tensors) -> None:
        self._function = function
        self._tokens = dict(tokens)
        self.features, self._pullback = vjp(function, self._tokens)  # type: ignore[misc]

    def vjp(self, g_KBCE: Tensor, *, release: bool = False) -> Tensors:
        gradients = [self._pullback(g)[0] for g in g_KBCE]
        return {name: torch.stack([gradient[name] for gradient in gradients]) for name in self._tokens}

    def vjp_for_hvp(self, g_KBCE: Tensor) -> tuple[Tensors, Tensor]:
        """Return the result of `vjp`, and the cotangents themselves."""
        return self.vjp(g_KBCE), g_KBCE

    def jvp(self, tangents: Tensors) -> tuple[Tensor, list[Tensors]]:
        """Return the K tangents of the features, and a list of the K tangents of the tokens."""
        num_tangents = len(next(iter(tangents.values())))
        by_loss = [{name: tangents[name][k] for name in self._tokens} for k in range(num_tangents)]

        def token_vjp(g: Tensor) -> Tensors:
            return vjp(self._function, self._tokens)[1](g)[0]

        # The vjp is linear in g. The vjp of this linear map is the jvp.
        _, push_forward = vjp(token_vjp, torch.zeros_like(self.features))  # type: ignore[misc]
        return torch.stack([push_forward(t)[0] for t in by_loss]), by_loss

    def hvp(
        self, cotangents: Tensor, tangents: list[Tensors], r_BCE: Tensor, *, release: bool = False
    ) -> Tensors:
        def scalar(tokens: Tensors) -> Tensor:
            features, pullback = vjp(self._function, tokens)  # type: ignore[misc]
            total = (r_BCE * features).sum()
            for g, t in zip(cotangents, tangents, strict=True):
                total = total + sum((t[name] * gradient).sum() for name, gradient in pullback(g)[0].items())
            return total

        return grad(scalar)(self._tokens)


TowerPass = Pass | AutodiffPass

Records = dict[str, Any]
"""By tower: what `hvp` requires of cotangents or of tangents."""


@dataclass(frozen=True)
class TowerPasses:
    """Forward passes of the prompted towers and their unnormalized features, keyed by "text" and "vision".

    Text features are (C, E), or (B, C, E) with conditional prompts. Image features are (B, E). `constant_*`:
    features of a tower without prompts, otherwise None. `constant_text_CE` is normalized. `constant_image_BE`
    is not, because the query loss mixes unnormalized image features. Passes compute in `dtype`.
    """

    dtype: torch.dtype
    passes: Mapping[str, TowerPass]
    features: Tensors
    constant_text_CE: Tensor | None
    constant_image_BE: Tensor | None

    def text_and_image(self, features: Tensors) -> tuple[Tensor, Tensor]:
        """Return normalized text and unnormalized image features, given the features of prompted towers."""
        text, image_BE = self.constant_text_CE, features.get("vision", self.constant_image_BE)
        if "text" in features:
            text = F.normalize(features["text"], dim=-1)
        assert text is not None
        assert image_BE is not None
        return text, image_BE

    def vjp(self, cotangents: Tensors, *, release: bool = False) -> Tensors:
        """Map cotangents of the features, such as (K, B, E), to cotangents (K, P, D) of the tokens.

        For `release`, see `Pass`.
        """
        return self._token_gradients(cotangents, lambda _, each, g: each.vjp(g, release=release))

    def vjp_for_hvp(self, cotangents: Tensors) -> tuple[Tensors, Records]:
        """Return the result of `vjp`, and what `hvp` requires of the cotangents."""
        records: Records = {}

        def pull_back(tower: str, tower_pass: TowerPass, g: Tensor) -> Mapping[Any, Tensor]:
            gradients, records[tower] = tower_pass.vjp_for_hvp(g)
            return gradients

        return self._token_gradients(cotangents, pull_back), records

    @torch.no_grad()
    def jvp(self, tangents: Tensors) -> tuple[Tensors, Records]:
        """Map tangents (K, P, D) of the tokens to tangents of the features, such as (K, B, E).

        Also return what `hvp` requires of the tangents.
        """
        pushed: Tensors = {}
        records: Records = {}
        for tower, tower_pass in self.passes.items():
            if isinstance(tower_pass, Pass):
                by_layer = tokens_by_layer(tangents, tower)
                by_layer = {layer: t.to(self.dtype) for layer, t in by_layer.items()}
                features, records[tower] = tower_pass.jvp(by_layer)
            else:
                features, records[tower] = tower_pass.jvp(tangents)
            pushed[tower] = features.to(self.features[tower].dtype)
        return pushed, records

    def hvp(
        self, vjp_records: Records, jvp_records: Records, cotangents: Tensors, *, release: bool = False
    ) -> Tensors:
        """Return the gradients (P, D), with respect to the tokens, of <r, features> + sum_k <g_k, J t_k>.

        r: `cotangents`. g_k: cotangents of `vjp_for_hvp`. t_k: tangents of `jvp`. J: Jacobian.
        If g_k and A_k are gradient and Hessian of loss k in the features, and r = sum_k A_k J t_k,
        the result is sum_k H_k t_k, where H_k is the Hessian of loss k in the tokens.

        Args:
            vjp_records, jvp_records: Second results of `vjp_for_hvp` and `jvp`.
            cotangents: Cotangents r of the features.
            release: Free residuals and records after their use (see `Pass`).
        """
        return self._token_gradients(
            cotangents,
            lambda tower, each, r: each.hvp(vjp_records[tower], jvp_records[tower], r, release=release),
        )

    @torch.no_grad()
    def _token_gradients(
        self, cotangents: Tensors, derivative: Callable[[str, TowerPass, Tensor], Mapping[Any, Tensor]]
    ) -> Tensors:
        gradients: Tensors = {}
        for tower, tower_pass in self.passes.items():
            g = cotangents[tower]
            if isinstance(tower_pass, Pass):
                for layer, tensor in derivative(tower, tower_pass, g.to(self.dtype)).items():
                    gradients[f"{tower}.{layer}"] = tensor.to(g.dtype)
            else:
                gradients |= {str(name): tensor for name, tensor in derivative(tower, tower_pass, g).items()}
        return gradients
