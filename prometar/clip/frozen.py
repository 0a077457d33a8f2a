"""A network of others with its numbers as values: nothing in it is learned."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor, nn
from torch.func import functional_call


@dataclass(frozen=True)
class Frozen:
    """A network, and its parameters and buffers by name."""

    network: nn.Module
    tensors: Mapping[str, Tensor]

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with every tensor changed; whole numbers, such as indices, keep their kind."""

        def changed(tensor: Tensor) -> Tensor:
            new = change(tensor)
            return new if tensor.is_floating_point() or new.dtype == tensor.dtype else tensor.to(new.device)

        return replace(self, tensors={name: changed(tensor) for name, tensor in self.tensors.items()})


def names(network: nn.Module) -> list[str]:
    """The numbers that a file must hold."""
    return [name for name, tensor in network.state_dict().items() if tensor.is_floating_point()]


def tensors_of(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict, and the buffers that no file holds."""
    found = {**dict(network.named_buffers()), **{name: state[name].detach() for name in names(network)}}
    # Counts of batches are for training alone.
    return {name: tensor for name, tensor in found.items() if not name.endswith("num_batches_tracked")}


@dataclass(frozen=True)
class Closed(Frozen):
    """An image tower that no prompt enters: any network from images to features.

    why: what it is, as a reason why no prompt enters it ("its image tower is a ResNet").
    """

    why: str

    def __call__(self, images_B3HW: Tensor) -> Tensor:
        """Un-normalised features (B, E)."""
        return functional_call(self.network, dict(self.tensors), (images_B3HW,))


def closed(network: nn.Module, state: Mapping[str, Tensor], why: str) -> Closed:
    """`network` with the tensors of its state dict, and the buffers that no file holds."""
    return Closed(network.eval().requires_grad_(False), tensors_of(network, state), why)
