"""An image tower that no prompt enters: any network from images to features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from prometar.backbone.frozen import Frozen, tensors_of


@dataclass(frozen=True)
class Closed(Frozen):
    """A frozen network.

    why: what it is, as a reason why no prompt enters it ("its image tower is a ResNet").
    """

    why: str

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """Un-normalised features (B, E)."""
        features: Tensor = functional_call(self.network, dict(self.tensors), (images_B3HW,))
        return features


def closed(network: nn.Module, state: Mapping[str, Tensor], why: str) -> Closed:
    """`network` with the tensors of its state dict, and the buffers that no file holds."""
    return Closed(network.eval().requires_grad_(False), tensors_of(network, state), why)
