"""Forward passes through CLIP's towers, and derivatives of their outputs with respect to a method's inputs.

Shape suffixes: K cotangents or tangents, P tokens of width D, B images, C classes, features of width E.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prometar.clip.tower import Pass
from prometar.methods.composition import section_of
from prometar.methods.features import Features
from prometar.methods.prompts import Tensors, tokens_by_layer
from prometar.step.autodiff import AutodiffPass

TowerPass = Pass | AutodiffPass
"""Forward pass through a tower.

A `Pass` has hand-written derivatives. Its inputs are tokens by layer, and its output is a tensor of features.
An `AutodiffPass` uses autograd. Its inputs and outputs are tensors by name.
"""

Records = dict[str, Any]
"""What `vjp_for_hvp` or `jvp` saves for `hvp`, by tower."""


@dataclass(frozen=True)
class TowerPasses:
    """Forward passes through the changed towers, and the outputs on which the losses depend.

    Args:
        dtype: Precision of the towers.
        passes: Pass of each changed tower, "text" or "vision".
        outputs: Outputs of the passes: "text" (C, E), or (B, C, E) if it depends on the images, "vision"
            (B, E) and "vision.prompts" (B, D). Also the learned tensors that losses use directly, without a
            tower. They are inputs and outputs at once.
        constant_text_CE: Normalized text features if the text tower is unchanged, otherwise None.
        constant_image_BE: Image features if the image tower is unchanged, otherwise None. Not normalized,
            because the query loss mixes unnormalized image features.
    """

    dtype: torch.dtype
    passes: Mapping[str, TowerPass]
    outputs: Tensors
    constant_text_CE: Tensor | None
    constant_image_BE: Tensor | None

    def features(self, outputs: Tensors) -> Features:
        """Return the features of both towers, given the outputs of the changed ones."""
        text = outputs.get("text", self.constant_text_CE)
        image_BE = outputs.get("vision", self.constant_image_BE)
        assert text is not None
        assert image_BE is not None
        # Constant text features are normalized. The outputs of a pass are not.
        text_is_normalized = "text" not in outputs
        prompts_BD = outputs.get("vision.prompts")
        return Features(text, image_BE, prompts_BD, text_is_normalized=text_is_normalized)

    def vjp(self, cotangents: Tensors, *, release: bool = False) -> Tensors:
        """Map cotangents of the outputs, such as (K, B, E), to cotangents (K, P, D) of the inputs.

        For `release`, see `Pass`.
        """

        def pull_back(tower: str, tower_pass: Any, g: Any) -> Mapping[Any, Tensor]:
            return tower_pass.vjp(g, release=release)

        return self._input_gradients(cotangents, pull_back)

    def vjp_for_hvp(self, cotangents: Tensors) -> tuple[Tensors, Records]:
        """Return the result of `vjp`, and what `hvp` requires of the cotangents."""
        records: Records = {}

        def pull_back(tower: str, tower_pass: Any, g: Any) -> Mapping[Any, Tensor]:
            gradients, records[tower] = tower_pass.vjp_for_hvp(g)
            return gradients

        return self._input_gradients(cotangents, pull_back), records

    @torch.no_grad()
    def jvp(self, tangents: Tensors) -> tuple[Tensors, Records]:
        """Map tangents (K, P, D) of the inputs to tangents of the outputs, such as (K, B, E).

        Also return what `hvp` requires of the tangents.
        """
        output_tangents = {name: tangents[name] for name in self._direct_outputs}
        records: Records = {}
        for tower, tower_pass in self.passes.items():
            if isinstance(tower_pass, Pass):
                layer_tangents = tokens_by_layer(tangents, tower)
                converted = {layer: tangent.to(self.dtype) for layer, tangent in layer_tangents.items()}
                feature_tangents, records[tower] = tower_pass.jvp(converted)
                output_tangents[tower] = feature_tangents.to(self.outputs[tower].dtype)
            else:
                tangents_of_tower, records[tower] = tower_pass.jvp(tangents)
                output_tangents |= tangents_of_tower
        return output_tangents, records

    def hvp(
        self, vjp_records: Records, jvp_records: Records, cotangents: Tensors, *, release: bool = False
    ) -> Tensors:
        """Return the gradients, with respect to the inputs, of <r, outputs> + sum_k <g_k, J t_k>.

        r: `cotangents`. g_k: cotangents of `vjp_for_hvp`. t_k: tangents of `jvp`. J: Jacobian of the outputs.

        This is a Hessian-vector product if g_k and r are chosen as follows. Let g_k and A_k be gradient and
        Hessian of loss k with respect to the outputs, and r = sum_k A_k J t_k. Then the result is
        sum_k H_k t_k, where H_k is the Hessian of loss k with respect to the inputs.

        Args:
            vjp_records: Second result of `vjp_for_hvp`.
            jvp_records: Second result of `jvp`.
            cotangents: Cotangents r of the outputs.
            release: Free residuals and records after their use (see `Pass`).
        """

        def pull_back(tower: str, tower_pass: Any, r: Any) -> Mapping[Any, Tensor]:
            return tower_pass.hvp(vjp_records[tower], jvp_records[tower], r, release=release)

        return self._input_gradients(cotangents, pull_back)

    @property
    def _direct_outputs(self) -> list[str]:
        """Names of the outputs that are also inputs, because losses use them directly."""
        return [name for name in self.outputs if section_of(name) != "prompts"]

    @torch.no_grad()
    def _input_gradients(
        self, cotangents: Tensors, derivative: Callable[[str, Any, Any], Mapping[Any, Tensor]]
    ) -> Tensors:
        """Return the gradients of all inputs, given the cotangents of all outputs.

        Args:
            cotangents: Cotangents of the outputs of both towers.
            derivative: Called for each tower as `derivative(tower, tower_pass, cotangents)`, with the
                cotangents of this tower's outputs. Returns the gradients of this tower's inputs. For a
                `Pass`, these are a tensor and gradients by layer. For an `AutodiffPass`, both are by name.
        """
        gradients = {name: cotangents[name] for name in self._direct_outputs}
        for tower, tower_pass in self.passes.items():
            if isinstance(tower_pass, Pass):
                feature_cotangents = cotangents[tower]
                by_layer = derivative(tower, tower_pass, feature_cotangents.to(self.dtype))
                for layer, gradient in by_layer.items():
                    gradients[f"{tower}.{layer}"] = gradient.to(feature_cotangents.dtype)
            else:
                cotangents_of_tower = {name: cotangents[name] for name in tower_pass.values}
                by_name = derivative(tower, tower_pass, cotangents_of_tower)
                for name, gradient in by_name.items():
                    if name in gradients:  # both towers can share an input
                        gradients[name] = gradients[name] + gradient
                    else:
                        gradients[name] = gradient
        return gradients
