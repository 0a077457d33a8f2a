"""Prompts: which learnable tensors a method has, and which tokens they put into the towers."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.model import Clip
from prometar.errors import UserError

Leaves = dict[str, Tensor]
"""Small learnable tensors by name; everything that training changes is of this kind."""


class Prompts(Protocol):
    """Makes leaves, and the towers' tokens of them."""

    @property
    def num_context(self) -> int:
        """Text tokens after SOS that layer-0 prompts stand for (0: the text keeps its own)."""
        ...

    @property
    def templates(self) -> tuple[str, ...]:
        """Where the text keeps its own: texts of a class whose mean it is; none: the data set's own one."""
        return ()

    @property
    def conditional(self) -> bool:
        """Whether the text's tokens, and so its features, differ from image to image."""
        return False

    def init(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        """Initial leaves; `init_tokens` are the token ids of the initial context's words."""
        ...

    def tokens(self, leaves: Leaves) -> Leaves:
        """What the leaves put into the towers: `text.<layer>` and `vision.<layer>`, each (P, D).

        Where they are conditional, also what `seeing` makes the text's of. By default the leaves themselves.
        """
        return leaves

    def seeing(self, tokens: Leaves, frozen_BE: Tensor) -> Leaves:
        """The text's tokens for each image (B, P, D), by its frozen features; only where `conditional`."""
        return tokens


def enters_images(prompts: Prompts) -> bool:
    """Whether a prompt may enter the image tower; where none does, that runs once an image.

    A prompt type of one's own may say so, by `enters_images = False`.
    """
    return bool(getattr(prompts, "enters_images", True))


def layers(tokens: Leaves, tower: str) -> dict[int, Tensor]:
    """The tokens of one tower ("text" or "vision") by layer."""
    return {int(name.split(".")[1]): token for name, token in tokens.items() if name.startswith(f"{tower}.")}


def linear(shape: tuple[int, ...], num_in: int, *, like: Tensor, generator: torch.Generator) -> Tensor:
    """U(-1/sqrt(num_in), 1/sqrt(num_in)), the default of torch.nn.Linear for its weight and its bias.

    Drawn in float64 on the CPU: the same start whatever the precision and the device, which are those of
    `like`.
    """
    draw = torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1
    return (draw * num_in**-0.5).to(dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class NoPrompts(Prompts):
    """Identity: the frozen CLIP itself."""

    templates: tuple[str, ...] = ()
    num_context: int = 0
    enters_images: bool = False

    def init(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        return {}

    def tokens(self, leaves: Leaves) -> Leaves:
        return {}


@dataclass(frozen=True)
class IndependentPrompts(Prompts):
    """Independent text and vision prompts (IVLP): leaves `text.<layer>` and `vision.<layer>`.

    Layer 0 of the text starts from the embeddings of the initial words where there are enough of them (with
    `padding` "zeros" always: zeros stand before them), all others from N(0, std^2). A depth of 0 leaves that
    tower alone; depths beyond a tower's layers stop at its last.

    Source: "MaPLe", CVPR 2023 (its IVLP baseline); ProMetaR.
    """

    text_length: int = 4
    text_depth: int = 9
    vision_length: int = 4
    vision_depth: int = 9
    std: float = 0.02
    templates: tuple[str, ...] = ()
    padding: str = "random"

    def __post_init__(self) -> None:
        if self.text_depth == 0 and self.vision_depth == 0:
            raise UserError(
                "prompts.text_depth and prompts.vision_depth are both 0: nothing would be learned"
            )

    @property
    def num_context(self) -> int:
        return self.text_length if self.text_depth else 0

    @property
    def enters_images(self) -> bool:
        return self.vision_depth > 0

    def init(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        leaves: Leaves = {}
        for layer in range(min(self.text_depth, len(clip.text.blocks))):
            if layer == 0 and (self.padding == "zeros" or self.text_length <= len(init_tokens)):
                words = clip.token_embedding[init_tokens[: self.text_length]].to(
                    clip.working_dtype, copy=True
                )
                leaves["text.0"] = F.pad(words, (0, 0, self.text_length - len(words), 0))
            else:
                leaves[f"text.{layer}"] = self._random(self.text_length, clip.text.width, clip, generator)
        for layer in range(min(self.vision_depth, len(clip.vision.blocks))):
            leaves[f"vision.{layer}"] = self._random(self.vision_length, clip.vision.width, clip, generator)
        return leaves

    def _random(self, length: int, width: int, clip: Clip, generator: torch.Generator) -> Tensor:
        # Drawn in float64 on the CPU: the same start whatever the precision and the device.
        draw = torch.randn(length, width, dtype=torch.float64, generator=generator) * self.std
        return draw.to(dtype=clip.working_dtype, device=clip.device)


@dataclass(frozen=True)
class CoupledPrompts(Prompts):
    """v_l = t_l W_l^T + b_l in each of the first `depth` layers: leaves `text.l`, `vision.l.weight`
    (D_vision, D_text) and `vision.l.bias`.

    The text's tokens start as those of `IndependentPrompts`; the maps as a torch.nn.Linear, the first layer's
    as one and all deeper ones' as copies of another. The depth stops at the shallower tower's last layer.

    Raises:
        UserError: depth 0.

    Source: "MaPLe", CVPR 2023 (released: 2 tokens, depth 9).
    """

    length: int = 2
    depth: int = 9
    std: float = 0.02
    padding: str = "random"

    def __post_init__(self) -> None:
        if self.depth == 0:
            raise UserError("prompts.text_depth is 0: coupled prompts start in the text tower")

    @property
    def num_context(self) -> int:
        return self.length

    def init(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        depth = min(self.depth, len(clip.text.blocks), len(clip.vision.blocks))
        text = IndependentPrompts(self.length, depth, vision_depth=0, std=self.std, padding=self.padding)
        leaves = text.init(clip, init_tokens, generator)
        width, like = clip.text.width, leaves["text.0"]
        shapes = {"weight": (clip.vision.width, width), "bias": (clip.vision.width,)}
        for layer in range(depth):
            for name, shape in shapes.items():
                leaf = f"vision.{layer}.{name}"
                if layer < 2:
                    leaves[leaf] = linear(shape, width, like=like, generator=generator)
                else:
                    leaves[leaf] = leaves[f"vision.1.{name}"].clone()
        return leaves

    def tokens(self, leaves: Leaves) -> Leaves:
        tokens = {name: leaf for name, leaf in leaves.items() if name.startswith("text.")}
        for name, token in list(tokens.items()):
            layer = f"vision.{name.removeprefix('text.')}"
            tokens[layer] = token @ leaves[f"{layer}.weight"].T + leaves[f"{layer}.bias"]
        return tokens


@dataclass(frozen=True)
class ConditionalPrompts(Prompts):
    """t(x) = t + W_out relu(W_in f0(x) + b_in) + b_out for every token t of the context, in the first layer.

    f0(x) are the frozen CLIP's normalised features of the image; the hidden layer has E / `reduction` units.
    Leaves: `text.0`, and `shift.in` and `shift.out` with `.weight` and `.bias`. The context starts as that of
    `IndependentPrompts`, the net as two torch.nn.Linear.

    Source: "Conditional Prompt Learning for Vision-Language Models" (CoCoOp), CVPR 2022 (released: 4 tokens,
    reduction 16).
    """

    length: int = 4
    std: float = 0.02
    reduction: int = 16
    padding: str = "random"
    conditional: bool = True
    enters_images: bool = False

    @property
    def num_context(self) -> int:
        return self.length

    def init(self, clip: Clip, init_tokens: Tensor, generator: torch.Generator) -> Leaves:
        text = IndependentPrompts(self.length, 1, vision_depth=0, std=self.std, padding=self.padding)
        leaves = text.init(clip, init_tokens, generator)
        widths = (clip.embed_dim, max(1, clip.embed_dim // self.reduction), clip.text.width)
        for name, num_in, num_out in zip(("in", "out"), widths, widths[1:], strict=False):
            for kind, shape in (("weight", (num_out, num_in)), ("bias", (num_out,))):
                leaf = linear(shape, num_in, like=leaves["text.0"], generator=generator)
                leaves[f"shift.{name}.{kind}"] = leaf
        return leaves

    def seeing(self, tokens: Leaves, frozen_BE: Tensor) -> Leaves:
        hidden = (frozen_BE @ tokens["shift.in.weight"].T + tokens["shift.in.bias"]).relu()
        shift_BD = hidden @ tokens["shift.out.weight"].T + tokens["shift.out.bias"]
        return {"text.0": tokens["text.0"] + shift_BD[:, None]}
