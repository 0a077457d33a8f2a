"""Adapters, which change the blocks of CLIP's towers: modules beside blocks, or changes of frozen weights."""

from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from prometar.methods.layers import LayerRange, layers_in_tower
from prometar.methods.prompts import Leaves, Tensors, sample_normal
from prometar.methods.section import ComponentSection, CustomKindSection, Kinds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Block, Clip

TowerName = Literal["text", "vision"]


class Place(NamedTuple):
    """Position of a block: its tower, its index in the tower (from 0), and the tower's number of blocks."""

    tower: TowerName
    index: int
    num_blocks: int


class Adapters(ComponentSection):
    """Base class of adapters. By default, an adapter changes nothing.

    A tower that an adapter changes is differentiated by autograd. `block` and `parallel` receive the results
    of `inputs`, and must not change tensors in place.
    """

    def changes(self, tower: TowerName) -> bool:
        """Return True if the adapter changes blocks of a tower."""
        return False

    def first_block(self, tower: TowerName, num_blocks: int) -> int:
        """Return the index (from 0) of the first block that the adapter changes in a tower. Default: 0.

        Results of the blocks before it can be reused.
        """
        return 0

    def initialize(self, clip: "Clip", generator: "Generator") -> Leaves:
        """Return the initial learnable tensors by name, in `clip.working_dtype`."""
        return {}

    def inputs(self, leaves: Leaves) -> Tensors:
        """Return what `block` and `parallel` need, given the leaves. Default: the leaves themselves."""
        return leaves

    def block(self, place: Place, block: "Block", inputs: Tensors) -> "Block":
        """Return the weights of a block, given its frozen weights. Default: the frozen weights.

        The frozen weights are those of the checkpoint, so LayerNorms have weights and biases.
        """
        return block

    def parallel(self, place: Place, normed: "Tensor", inputs: Tensors) -> "Tensor | None":
        """Return what is added to the output of a block, or None (the default).

        Args:
            place: The block.
            normed: The block's input after its first LayerNorm (rows, tokens, width).
            inputs: Results of `inputs`.
        """
        return None


class NoAdapters(Adapters):
    """No adapters."""

    kind: Literal["none"] = "none"


class ParallelAdapters(Adapters):
    """Bottleneck beside each block l of `layers` in both towers: x' = block_l(x) + scale * y.

    y = U relu(S relu(D n + b_D) + b_S) + b_U, where n is the block's input after its first LayerNorm.
    D maps the width of a tower to `dim`, S (`dim` x `dim`) is shared by the towers, U maps to the width.
    If `shared` is False, S is omitted. Weights with m outputs start as N(0, 2 / m), biases as 0.

    As in the published code, gradients of the adapters' tensors are divided by `scale`, so that the best
    learning rate does not depend on `scale`. The tower's other inputs receive their true gradients.

    Source: "MMA: Multi-Modal Adapter for Vision-Language Models", CVPR 2024 (published: layers 5 to 12,
    dim 32, scale 0.001). The published code also accepts layer 0, which adapts the embeddings. We do not.
    """

    kind: Literal["parallel"] = "parallel"
    layers: LayerRange = "5-12"
    dim: int = Field(default=32, ge=1, le=4096)
    scale: float = Field(default=0.001, gt=0, le=100)
    shared: bool = True

    def changes(self, tower: TowerName) -> bool:
        return True

    def first_block(self, tower: TowerName, num_blocks: int) -> int:
        return min(layers_in_tower(self.layers, num_blocks).values())

    def initialize(self, clip: "Clip", generator: "Generator") -> Leaves:
        leaves: Leaves = {}
        adapted_layers: list[int] = []  # in any tower
        for name, tower in (("text", clip.text), ("vision", clip.vision)):
            for layer in layers_in_tower(self.layers, len(tower.blocks)):
                if layer not in adapted_layers:
                    adapted_layers.append(layer)
                place = f"{name}.{layer}"
                self._add_linear(leaves, f"{place}.down", (self.dim, tower.width), clip, generator)
                self._add_linear(leaves, f"{place}.up", (tower.width, self.dim), clip, generator)
        if self.shared:
            for layer in adapted_layers:
                self._add_linear(leaves, f"shared.{layer}", (self.dim, self.dim), clip, generator)
        return leaves

    def _add_linear(
        self, leaves: Leaves, name: str, shape: tuple[int, int], clip: "Clip", generator: "Generator"
    ) -> None:
        num_out = shape[0]
        weight = sample_normal(shape, (2 / num_out) ** 0.5, like=clip.logit_scale, generator=generator)
        leaves[f"{name}.weight"] = weight
        leaves[f"{name}.bias"] = weight.new_zeros(num_out)

    def inputs(self, leaves: Leaves) -> Tensors:
        return {name: _with_scaled_gradient(leaf, 1 / self.scale) for name, leaf in leaves.items()}

    def parallel(self, place: Place, normed: "Tensor", inputs: Tensors) -> "Tensor | None":
        from torch.nn.functional import linear

        index_by_layer = layers_in_tower(self.layers, place.num_blocks)
        layer_by_index = {index: layer for layer, index in index_by_layer.items()}
        if place.index not in layer_by_index:
            return None
        layer = layer_by_index[place.index]

        def apply_linear(name: str, rows: "Tensor") -> "Tensor":
            weight = inputs[f"{name}.weight"].to(rows.dtype)
            bias = inputs[f"{name}.bias"].to(rows.dtype)
            return linear(rows, weight, bias)

        hidden = apply_linear(f"{place.tower}.{layer}.down", normed).relu()
        if self.shared:
            hidden = apply_linear(f"shared.{layer}", hidden).relu()
        return self.scale * apply_linear(f"{place.tower}.{layer}.up", hidden)


def _with_scaled_gradient(leaf: "Tensor", factor: float) -> "Tensor":
    """Return the leaf's exact value, with a gradient that is multiplied by a factor."""
    constant = leaf.detach()
    return constant + (leaf - constant) * factor  # the difference is exactly 0


class CustomAdapters(CustomKindSection, Adapters):
    """Custom adapters."""


ADAPTERS = Kinds({"none": NoAdapters, "parallel": ParallelAdapters}, default="none", custom=CustomAdapters)
