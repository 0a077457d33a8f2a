"""An image tower that no prompt enters: any network from images to features."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Closed:
    """A frozen network with its parameters and buffers as values.

    why: what it is, as a reason why no prompt enters it ("its image tower is a ResNet").
    """

    network: nn.Module
    tensors: Mapping[str, Tensor]
    why: str

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """Un-normalised features (B, E)."""
        features: Tensor = functional_call(self.network, dict(self.tensors), (images_B3HW,))
        return features

    def map(self, change: Callable[[Tensor], Tensor]) -> Closed:
        """A copy with every tensor changed; whole numbers, such as indices, keep their kind."""

        def changed(tensor: Tensor) -> Tensor:
            new = change(tensor)
            return new if tensor.is_floating_point() or new.dtype == tensor.dtype else tensor.to(new.device)

        return replace(self, tensors={name: changed(tensor) for name, tensor in self.tensors.items()})


def closed(network: nn.Module, state: Mapping[str, Tensor], why: str) -> Closed:
    """`network` with the tensors of its state dict, and the buffers that no file holds."""
    found = {**dict(network.named_buffers()), **{name: state[name].detach() for name in names(network)}}
    # Counts of batches are for training alone.
    kept = {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}
    return Closed(network.eval().requires_grad_(False), kept, why)


def names(network: nn.Module) -> list[str]:
    """The numbers that a file must hold."""
    return [name for name, tensor in network.state_dict().items() if tensor.is_floating_point()]
