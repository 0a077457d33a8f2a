"""Prompts: the learnable tensors of a method, and the tokens they put into the towers."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prometar.methods.part import Chosen, CustomPart, Part

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Clip

Leaves = dict[str, "Tensor"]
"""Small learnable tensors by name; everything that training changes is of this kind."""


class Prompts(Part):
    """Makes leaves, and the towers' tokens of them. `init`: the words that a text context starts from."""

    conditional: ClassVar[bool] = False
    """True if the text's tokens, and so its features, differ from image to image."""

    init: str = "a photo of a"

    @property
    def num_context(self) -> int:
        """Number of text tokens after SOS that layer-0 prompts replace (0: the text keeps its own)."""
        return 0

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates whose mean is a class's text if no context is learned (none: the dataset's own)."""
        return ()

    @property
    def enters_images(self) -> bool:
        """True if a prompt enters the image tower. Otherwise each image is encoded only once."""
        return False

    def initialize(self, clip: "Clip", init_tokens: "Tensor", generator: "Generator") -> Leaves:
        """Return the initial leaves; `init_tokens` are the token ids of the initial context's words."""
        return {}

    def tokens(self, leaves: Leaves) -> Leaves:
        """Return the tokens that enter the towers: `text.<layer>` and `vision.<layer>`, each (P, D).

        If they are conditional, also what `seeing` makes the text's tokens of.
        """
        return leaves

    def seeing(self, tokens: Leaves, frozen_BE: "Tensor") -> Leaves:
        """Return the text's tokens for each image (B, P, D), by frozen features; only if `conditional`."""
        return tokens


def enters_images(prompts: Prompts) -> bool:
    """Return whether a prompt may enter the image tower; True for custom prompts that do not say."""
    return bool(getattr(prompts, "enters_images", True))


def layers(tokens: Leaves, tower: str) -> dict[int, "Tensor"]:
    """Return the tokens of one tower ("text" or "vision") by layer."""
    return {int(name.split(".")[1]): token for name, token in tokens.items() if name.startswith(f"{tower}.")}


def linear(shape: tuple[int, ...], num_in: int, *, like: "Tensor", generator: "Generator") -> "Tensor":
    """U(-1/sqrt(num_in), 1/sqrt(num_in)), the default of torch.nn.Linear for its weight and its bias.

    Drawn in float64 on the CPU, so that the start does not depend on the precision and device of `like`.
    """
    import torch

    draw = torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1
    return (draw * num_in**-0.5).to(dtype=like.dtype, device=like.device)


def _normal(length: int, width: int, std: float, clip: "Clip", generator: "Generator") -> "Tensor":
    """N(0, std^2), drawn in float64 on the CPU as in `linear`."""
    import torch

    draw = torch.randn(length, width, dtype=torch.float64, generator=generator) * std
    return draw.to(dtype=clip.working_dtype, device=clip.device)


class _FrozenText(Prompts):
    """`frozen_text`: a class's text if no context is learned.

    It is the dataset's own template, "<init> <name>.", or the mean of 60 templates.
    """

    frozen_text: Literal["template", "init", "ensemble"] = "template"

    @property
    def templates(self) -> tuple[str, ...]:
        from prometar.clip.openclip import TEMPLATES

        known = {"template": (), "init": (f"{self.init} {{}}.",), "ensemble": TEMPLATES}
        return () if self.num_context else known[self.frozen_text]


class NoPrompts(_FrozenText):
    """Identity: the frozen CLIP itself."""

    kind: Literal["none"] = "none"


class _Context(Prompts):
    """A learned text context of `text_length` tokens.

    In layer 0 it starts from the embeddings of the words in `init`, in other layers from N(0, init_std^2).
    `init_padding`: a context longer than its words starts at random, or as zeros followed by the words.
    """

    text_length: int = Field(default=4, ge=1, le=64)
    init_std: float = Field(default=0.02, ge=0)
    init_padding: Literal["random", "zeros"] = "random"

    @property
    def num_context(self) -> int:
        return self.text_length

    def _text(self, clip: "Clip", words: "Tensor", depth: int, generator: "Generator") -> Leaves:
        """Return `text.<layer>` of the first `depth` layers."""
        leaves: Leaves = {}
        for layer in range(min(depth, len(clip.text.blocks))):
            if layer == 0 and (self.init_padding == "zeros" or self.text_length <= len(words)):
                rows = clip.token_embedding[words[: self.text_length]].to(clip.working_dtype)
                leaves["text.0"] = rows.new_zeros(self.text_length, clip.text.width)
                leaves["text.0"][self.text_length - len(rows) :] = rows
            else:
                width = clip.text.width
                leaves[f"text.{layer}"] = _normal(self.text_length, width, self.init_std, clip, generator)
        return leaves


class IndependentPrompts(_Context, _FrozenText):
    """Independent text and vision prompts (IVLP): leaves `text.<layer>` and `vision.<layer>`.

    A depth of 0 leaves that tower alone; depths beyond a tower's layers stop at its last.

    Source: "MaPLe", CVPR 2023 (its IVLP baseline); ProMetaR.
    """

    kind: Literal["independent"] = "independent"
    text_depth: int = Field(default=9, ge=0)
    vision_length: int = Field(default=4, ge=1, le=128)
    vision_depth: int = Field(default=9, ge=0)

    @model_validator(mode="after")
    def _learns(self) -> Self:
        if self.text_depth == 0 and self.vision_depth == 0:
            raise ValueError("text_depth and vision_depth are both 0: nothing would be learned")
        return self

    @property
    def num_context(self) -> int:
        return self.text_length if self.text_depth else 0

    @property
    def enters_images(self) -> bool:
        return self.vision_depth > 0

    def initialize(self, clip: "Clip", init_tokens: "Tensor", generator: "Generator") -> Leaves:
        leaves = self._text(clip, init_tokens, self.text_depth, generator)
        for layer in range(min(self.vision_depth, len(clip.vision.blocks))):
            width = clip.vision.width
            leaves[f"vision.{layer}"] = _normal(self.vision_length, width, self.init_std, clip, generator)
        return leaves


class CoupledPrompts(_Context):
    """Image prompts that are linear maps of the text prompts: v_l = t_l W_l^T + b_l.

    In each of the first `text_depth` layers: leaves `text.l`, `vision.l.weight` (D_vision, D_text) and
    `vision.l.bias`.
    The maps start as torch.nn.Linear does: the first layer's as one, all deeper ones' as copies of another.
    The depth stops at the shallower tower's last layer.

    Source: "MaPLe", CVPR 2023 (released: 2 tokens, depth 9).
    """

    kind: Literal["coupled"] = "coupled"
    text_depth: int = Field(default=9, ge=1)

    @property
    def enters_images(self) -> bool:
        return True

    def initialize(self, clip: "Clip", init_tokens: "Tensor", generator: "Generator") -> Leaves:
        depth = min(self.text_depth, len(clip.text.blocks), len(clip.vision.blocks))
        leaves = self._text(clip, init_tokens, depth, generator)
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


class ConditionalPrompts(_Context):
    """t(x) = t + W_out relu(W_in f0(x) + b_in) + b_out for every token t of the context, in the first layer.

    f0(x) are the frozen CLIP's normalised features of the image. The hidden layer has E / `reduction` units.
    Leaves: `text.0`, and `shift.in` and `shift.out` with `.weight` and `.bias`. The net starts as two
    torch.nn.Linear.

    Source: "Conditional Prompt Learning for Vision-Language Models" (CoCoOp), CVPR 2022 (released: 4 tokens,
    reduction 16).
    """

    conditional: ClassVar[bool] = True

    kind: Literal["conditional"] = "conditional"
    reduction: int = Field(default=16, ge=1)

    def initialize(self, clip: "Clip", init_tokens: "Tensor", generator: "Generator") -> Leaves:
        leaves = self._text(clip, init_tokens, 1, generator)
        widths = (clip.embed_dim, max(1, clip.embed_dim // self.reduction), clip.text.width)
        for name, num_in, num_out in zip(("in", "out"), widths, widths[1:], strict=False):
            for part, shape in (("weight", (num_out, num_in)), ("bias", (num_out,))):
                leaf = linear(shape, num_in, like=leaves["text.0"], generator=generator)
                leaves[f"shift.{name}.{part}"] = leaf
        return leaves

    def seeing(self, tokens: Leaves, frozen_BE: "Tensor") -> Leaves:
        hidden = (frozen_BE @ tokens["shift.in.weight"].T + tokens["shift.in.bias"]).relu()
        shift_BD = hidden @ tokens["shift.out.weight"].T + tokens["shift.out.bias"]
        return {"text.0": tokens["text.0"] + shift_BD[:, None]}


class CustomPrompts(CustomPart, Prompts):
    """Custom prompts; `init` is given to the tokenizer as for built-in ones."""


AnyPrompts = Chosen[NoPrompts | IndependentPrompts | CoupledPrompts | ConditionalPrompts, CustomPrompts]
