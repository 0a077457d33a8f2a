"""Prompts, which map learnable tensors (leaves) to the tokens that enter CLIP's text and image towers."""

from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prometar.methods.section import BuiltInOrCustom, ComponentSection, CustomKindSection

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Clip

Tensors = dict[str, "Tensor"]  # tensors by name, e.g. tokens, features or gradients
Leaves = Tensors  # the learnable tensors of prompts or of a modulator


class Prompts(ComponentSection):
    """Base class of prompts. `init`: words whose embeddings initialize the learned text tokens (context)."""

    conditional: ClassVar[bool] = False
    """True if text tokens, and thus text features, depend on the image."""

    init: str = "a photo of a"

    @property
    def num_context(self) -> int:
        """Number of learned tokens that follow the start token in layer 0 of the text tower."""
        return 0

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates whose text features are averaged if no context is learned. Empty to use the dataset's."""
        return ()

    @property
    def enters_images(self) -> bool:
        """True if prompts enter the image tower. Otherwise, each image is encoded only once."""
        return False

    def initialize(self, clip: "Clip", init_ids: "Tensor", generator: "Generator") -> Leaves:
        """Return the initial leaves, given the token ids of the words in `init`."""
        return {}

    def tokens(self, leaves: Leaves) -> Tensors:
        """Return the tokens that enter the towers: `text.<layer>` and `vision.<layer>`, each (tokens, width).

        Conditional prompts also return the other tensors that `condition_tokens` needs.
        """
        return leaves

    def condition_tokens(self, tokens: Tensors, frozen_BE: "Tensor") -> Tensors:
        """Return `text.<layer>` (B, tokens, width) given frozen image features. Conditional only."""
        return tokens


def has_image_prompts(prompts: Prompts) -> bool:
    """Return True if prompts enter the image tower, or are a class without `enters_images` (unknown)."""
    return bool(getattr(prompts, "enters_images", True))


def tokens_by_layer(tokens: Tensors, tower: str) -> dict[int, "Tensor"]:
    """Return the tokens of one tower ("text" or "vision") by layer."""
    return {int(name.split(".")[1]): each for name, each in tokens.items() if name.startswith(f"{tower}.")}


def sample_linear(shape: tuple[int, ...], num_in: int, *, like: "Tensor", generator: "Generator") -> "Tensor":
    """Sample from U(-1/sqrt(num_in), 1/sqrt(num_in)), the default initialization of torch.nn.Linear.

    Sampling in float64 on the CPU gives the same values for every precision and device of `like`.
    """
    import torch

    sample = torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1
    return (sample * num_in**-0.5).to(dtype=like.dtype, device=like.device)


def _normal(length: int, width: int, std: float, clip: "Clip", generator: "Generator") -> "Tensor":
    """Sample from N(0, std^2), in float64 on the CPU like `sample_linear`."""
    import torch

    sample = torch.randn(length, width, dtype=torch.float64, generator=generator) * std
    return sample.to(dtype=clip.working_dtype, device=clip.device)


class _PromptsWithTemplates(Prompts):
    """Base class with the setting `frozen_text`, the template of class texts if no context is learned.

    "template": the dataset's template. "init": "<init> <class>.". "ensemble": 60 templates, averaged.
    """

    frozen_text: Literal["template", "init", "ensemble"] = "template"

    @property
    def templates(self) -> tuple[str, ...]:
        from prometar.clip.openclip import TEMPLATES

        choices = {"template": (), "init": (f"{self.init} {{}}.",), "ensemble": TEMPLATES}
        return () if self.num_context else choices[self.frozen_text]


class NoPrompts(_PromptsWithTemplates):
    """No prompts: the frozen CLIP."""

    kind: Literal["none"] = "none"


class _Context(Prompts):
    """Learned text context of `text_length` tokens.

    Layer 0 starts as the embedded `init`. Deeper layers are sampled from N(0, init_std^2). If `init` has too
    few tokens, `init_padding` "zeros" puts zeros before them, and "random" discards them and samples layer 0.
    """

    text_length: int = Field(default=4, ge=1, le=64)
    init_std: float = Field(default=0.02, ge=0)
    init_padding: Literal["random", "zeros"] = "random"

    @property
    def num_context(self) -> int:
        return self.text_length

    def _initial_text(self, clip: "Clip", init_ids: "Tensor", depth: int, generator: "Generator") -> Leaves:
        """Return the initial `text.<layer>` of the first `depth` layers."""
        leaves: Leaves = {}
        for layer in range(min(depth, len(clip.text.blocks))):
            if layer == 0 and (self.init_padding == "zeros" or self.text_length <= len(init_ids)):
                rows = clip.token_embedding[init_ids[: self.text_length]].to(clip.working_dtype)
                leaves["text.0"] = rows.new_zeros(self.text_length, clip.text.width)
                leaves["text.0"][self.text_length - len(rows) :] = rows
            else:
                width = clip.text.width
                leaves[f"text.{layer}"] = _normal(self.text_length, width, self.init_std, clip, generator)
        return leaves


class IndependentPrompts(_Context, _PromptsWithTemplates):
    """Independent vision-language prompts (IVLP), with leaves `text.<layer>` and `vision.<layer>`.

    A tower with depth 0 has no prompts. A depth above the tower's number of layers means all of its layers.
    Source: IVLP baseline in "MaPLe", CVPR 2023, and ProMetaR.
    """

    kind: Literal["independent"] = "independent"
    text_depth: int = Field(default=9, ge=0)
    vision_length: int = Field(default=4, ge=1, le=128)
    vision_depth: int = Field(default=9, ge=0)

    @model_validator(mode="after")
    def _require_prompts(self) -> Self:
        if self.text_depth == 0 and self.vision_depth == 0:
            raise ValueError("text_depth and vision_depth are both 0. Set one of them to at least 1")
        return self

    @property
    def num_context(self) -> int:
        return self.text_length if self.text_depth else 0

    @property
    def enters_images(self) -> bool:
        return self.vision_depth > 0

    def initialize(self, clip: "Clip", init_ids: "Tensor", generator: "Generator") -> Leaves:
        leaves = self._initial_text(clip, init_ids, self.text_depth, generator)
        for layer in range(min(self.vision_depth, len(clip.vision.blocks))):
            width = clip.vision.width
            leaves[f"vision.{layer}"] = _normal(self.vision_length, width, self.init_std, clip, generator)
        return leaves


class CoupledPrompts(_Context):
    """Text prompts t_l, and image prompts v_l = t_l W_l^T + b_l, in each layer l.

    Leaves of the first `text_depth` layers: `text.l`, `vision.l.weight` (D_vision, D_text), `vision.l.bias`.
    W_l and b_l are initialized like torch.nn.Linear, with equal values in all layers after layer 0.
    `text_depth` is limited to the number of layers of the shallower tower.
    Source: "MaPLe", CVPR 2023 (published: 2 tokens, depth 9).
    """

    kind: Literal["coupled"] = "coupled"
    text_depth: int = Field(default=9, ge=1)

    @property
    def enters_images(self) -> bool:
        return True

    def initialize(self, clip: "Clip", init_ids: "Tensor", generator: "Generator") -> Leaves:
        depth = min(self.text_depth, len(clip.text.blocks), len(clip.vision.blocks))
        leaves = self._initial_text(clip, init_ids, depth, generator)
        width, like = clip.text.width, leaves["text.0"]
        shapes = {"weight": (clip.vision.width, width), "bias": (clip.vision.width,)}
        for layer in range(depth):
            for name, shape in shapes.items():
                key = f"vision.{layer}.{name}"
                if layer < 2:
                    leaves[key] = sample_linear(shape, width, like=like, generator=generator)
                else:
                    leaves[key] = leaves[f"vision.1.{name}"].clone()
        return leaves

    def tokens(self, leaves: Leaves) -> Tensors:
        tokens = {name: leaf for name, leaf in leaves.items() if name.startswith("text.")}
        for name, prompt in list(tokens.items()):
            vision_name = f"vision.{name.removeprefix('text.')}"
            tokens[vision_name] = prompt @ leaves[f"{vision_name}.weight"].T + leaves[f"{vision_name}.bias"]
        return tokens


class ConditionalPrompts(_Context):
    """Context tokens t(x) = t + W_out relu(W_in f0(x) + b_in) + b_out in layer 0 for each image x.

    f0(x): normalized image feature (E,) of frozen CLIP. The hidden layer has E / `reduction` units. Leaves: t
    (`text.0`), and `.weight` and `.bias` of `shift.in` and `shift.out`, initialized like torch.nn.Linear.
    Source: CoCoOp, CVPR 2022 (published: 4 tokens, reduction 16).
    """

    conditional: ClassVar[bool] = True

    kind: Literal["conditional"] = "conditional"
    reduction: int = Field(default=16, ge=1)

    def initialize(self, clip: "Clip", init_ids: "Tensor", generator: "Generator") -> Leaves:
        leaves = self._initial_text(clip, init_ids, 1, generator)
        widths = (clip.embed_dim, max(1, clip.embed_dim // self.reduction), clip.text.width)
        for name, num_in, num_out in zip(("in", "out"), widths, widths[1:], strict=False):
            for part, shape in (("weight", (num_out, num_in)), ("bias", (num_out,))):
                leaf = sample_linear(shape, num_in, like=leaves["text.0"], generator=generator)
                leaves[f"shift.{name}.{part}"] = leaf
        return leaves

    def condition_tokens(self, tokens: Tensors, frozen_BE: "Tensor") -> Tensors:
        hidden = (frozen_BE @ tokens["shift.in.weight"].T + tokens["shift.in.bias"]).relu()
        shift_BD = hidden @ tokens["shift.out.weight"].T + tokens["shift.out.bias"]
        return {"text.0": tokens["text.0"] + shift_BD[:, None]}


class CustomPrompts(CustomKindSection, Prompts):
    """Custom prompts. As with built-in prompts, `initialize` receives the token ids of `init`."""


_BuiltIn = NoPrompts | IndependentPrompts | CoupledPrompts | ConditionalPrompts
AnyPrompts = BuiltInOrCustom[_BuiltIn, CustomPrompts]
