"""Prompts, which map learnable tensors (leaves) to the tokens that enter CLIP's text and image towers."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from prometar.methods.layers import LayerRange, layers_in_tower
from prometar.methods.section import ComponentSection, CustomKindSection, Kinds

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from prometar.clip.model import Clip

Tensors = dict[str, "Tensor"]
"""Tensors by name, such as tokens, features or gradients."""

Leaves = Tensors
"""Learnable tensors of a component by name."""


class Prompts(ComponentSection):
    """Base class of prompts. `init`: words whose embeddings initialize the learned text tokens (context)."""

    conditional: ClassVar[bool] = False
    """True if text tokens, and thus text features, depend on the image."""

    class_aware: ClassVar[bool] = False
    """True if text tokens depend on the class, so texts share no context."""

    inserts: ClassVar[bool] = False
    """True if tokens are inserted before the first layer that has some, instead of replacing the context.

    Inserted text tokens follow the start token. They receive no position embeddings, and image tokens no
    `ln_pre`. In later layers without tokens of their own, they just pass through.
    """

    init: str = "a photo of a"

    @property
    def num_context(self) -> int:
        """Number of learned tokens that follow the start token in layer 0 of the text tower."""
        return 0

    @property
    def num_inserted(self) -> int:
        """Number of text tokens that are inserted after the start token, if `inserts`."""
        return 0

    @property
    def templates(self) -> tuple[str, ...]:
        """Templates whose text features are averaged if no context is learned. Empty to use the dataset's."""
        return ()

    @property
    def text_template(self) -> str | None:
        """Template whose first words class-aware prompts replace. None selects the dataset's "photo"."""
        return None

    @property
    def enters_images(self) -> bool:
        """True if prompts enter the image tower. Otherwise, each image is encoded only once."""
        return False

    def first_block(self, tower: str, num_blocks: int) -> int:
        """Return the index (from 0) of the first block of "text" or "vision" that prompts enter. Default: 0.

        Only used for prompts that are inserted (`inserts`). Results of the blocks before it can be reused.
        """
        return 0

    def initialize(self, clip: "Clip", init_ids: "Tensor", generator: "Generator") -> Leaves:
        """Return the initial leaves, given the token ids of the words in `init`."""
        return {}

    def tokens(self, leaves: Leaves) -> Tensors:
        """Return the tokens that enter the towers: `text.<layer>` and `vision.<layer>`, each (tokens, width).

        Conditional and class-aware prompts also return the other tensors that `condition_tokens` needs.
        """
        return leaves

    def condition_tokens(self, tokens: Tensors, frozen_NE: "Tensor") -> Tensors:
        """Return `text.<layer>` given normalized frozen features: of images if conditional, else of classes.

        Conditional: (B, tokens, width) for B images. Class-aware: (tokens, width), or (C, tokens, width) for
        C classes. Other prompts need no such method.
        """
        return tokens


@dataclass(frozen=True)
class PromptTraits:
    """What the step must know about prompts. Members that a custom class lacks have their defaults."""

    class_aware: bool
    inserts: bool
    num_inserted: int
    text_template: str | None

    @classmethod
    def of(cls, prompts: Prompts) -> "PromptTraits":
        return cls(
            class_aware=bool(getattr(prompts, "class_aware", False)),
            inserts=bool(getattr(prompts, "inserts", False)),
            num_inserted=int(getattr(prompts, "num_inserted", 0)),
            text_template=getattr(prompts, "text_template", None),
        )


def has_image_prompts(prompts: Prompts) -> bool:
    """Return True if prompts enter the image tower, or are a class without `enters_images` (unknown)."""
    return bool(getattr(prompts, "enters_images", True))


def is_token_name(name: str) -> bool:
    """Return True for the names of prompt tokens, `text.<layer>` and `vision.<layer>`."""
    tower, _, layer = name.partition(".")
    return tower in ("text", "vision") and layer.isdecimal()


def tokens_by_layer(tokens: Tensors, tower: str) -> dict[int, "Tensor"]:
    """Return the tokens of one tower ("text" or "vision") by layer."""
    by_layer: dict[int, Tensor] = {}
    for name, layer_tokens in tokens.items():
        tower_of_name, _, layer = name.partition(".")
        if tower_of_name == tower and is_token_name(name):
            by_layer[int(layer)] = layer_tokens
    return by_layer


def sample_linear(shape: tuple[int, ...], num_in: int, *, like: "Tensor", generator: "Generator") -> "Tensor":
    """Sample from U(-1/sqrt(num_in), 1/sqrt(num_in)), the default initialization of torch.nn.Linear.

    Sampling in float64 on the CPU gives the same values for every precision and device of `like`.
    """
    import torch

    sample = torch.rand(*shape, dtype=torch.float64, generator=generator) * 2 - 1
    return (sample * num_in**-0.5).to(dtype=like.dtype, device=like.device)


def sample_normal(shape: tuple[int, ...], std: float, *, like: "Tensor", generator: "Generator") -> "Tensor":
    """Sample from N(0, std^2), in float64 on the CPU like `sample_linear`."""
    import torch

    sample = torch.randn(*shape, dtype=torch.float64, generator=generator) * std
    return sample.to(dtype=like.dtype, device=like.device)


class _PromptsWithTemplates(Prompts):
    """Base class with the setting `frozen_text`, the template of class texts if no context is learned.

    "template": the dataset's template. "init": "<init> <class>.". "ensemble": 60 templates, averaged.
    """

    frozen_text: Literal["template", "init", "ensemble"] = "template"

    @property
    def templates(self) -> tuple[str, ...]:
        from prometar.clip.openclip import TEMPLATES

        if self.num_context or self.frozen_text == "template":
            return ()
        if self.frozen_text == "init":
            return (f"{self.init} {{}}.",)
        return TEMPLATES


class NoPrompts(_PromptsWithTemplates):
    """No prompts: the frozen CLIP."""

    kind: Literal["none"] = "none"


class _Context(Prompts):
    """Learned text context of `text_length` tokens.

    Layer 0 starts as the embedded `init`. Deeper layers are sampled from N(0, init_std^2). If `init` has
    fewer tokens than the context, `init_padding` "zeros" puts zeros before them. "random" ignores them, and
    samples layer 0 like the deeper layers.
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
        shape = (self.text_length, clip.text.width)
        embeds_init = self.init_padding == "zeros" or self.text_length <= len(init_ids)
        for layer in range(min(depth, len(clip.text.blocks))):
            if layer == 0 and embeds_init:
                rows = clip.token_embedding[init_ids[: self.text_length]].to(clip.working_dtype)
                num_zeros = self.text_length - len(rows)
                leaves["text.0"] = rows.new_zeros(shape)
                leaves["text.0"][num_zeros:] = rows
            else:
                leaves[f"text.{layer}"] = sample_normal(
                    shape, self.init_std, like=clip.logit_scale, generator=generator
                )
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
            shape = (self.vision_length, clip.vision.width)
            leaves[f"vision.{layer}"] = sample_normal(
                shape, self.init_std, like=clip.logit_scale, generator=generator
            )
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
        width = clip.text.width
        like = leaves["text.0"]
        shapes = {"weight": (clip.vision.width, width), "bias": (clip.vision.width,)}
        for layer in range(depth):
            for name, shape in shapes.items():
                key = f"vision.{layer}.{name}"
                if layer < 2:  # deeper layers copy layer 1
                    leaves[key] = sample_linear(shape, width, like=like, generator=generator)
                else:
                    leaves[key] = leaves[f"vision.1.{name}"].clone()
        return leaves

    def tokens(self, leaves: Leaves) -> Tensors:
        text_tokens = {name: leaf for name, leaf in leaves.items() if name.startswith("text.")}
        tokens = dict(text_tokens)
        for text_name, prompt in text_tokens.items():
            vision_name = f"vision.{text_name.removeprefix('text.')}"
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
        hidden = max(1, clip.embed_dim // self.reduction)
        shapes = {"shift.in": (hidden, clip.embed_dim), "shift.out": (clip.text.width, hidden)}
        like = leaves["text.0"]
        for name, (num_out, num_in) in shapes.items():
            shape = (num_out, num_in)
            leaves[f"{name}.weight"] = sample_linear(shape, num_in, like=like, generator=generator)
            leaves[f"{name}.bias"] = sample_linear((num_out,), num_in, like=like, generator=generator)
        return leaves

    def condition_tokens(self, tokens: Tensors, frozen_NE: "Tensor") -> Tensors:
        hidden = (frozen_NE @ tokens["shift.in.weight"].T + tokens["shift.in.bias"]).relu()
        shift_BD = hidden @ tokens["shift.out.weight"].T + tokens["shift.out.bias"]
        return {"text.0": tokens["text.0"] + shift_BD[:, None]}


class ClassAwarePrompts(_Context):
    """Context tokens t in layer 0, and class-aware tokens A_c before text layer `layer` (from 1).

    A_c = W_out q(W_in w_c + b_in) + b_out, reshaped to `text_length` tokens. q(x) = x sigmoid(1.702 x).
    w_c: normalized frozen text feature (E,) of class c, from the templates of `regularizer.teacher`. The
    hidden layer has E / `reduction` units. A_c replaces the hidden states of the context, without positions.
    The text is `template` (default: the dataset's "photo"). The context replaces its first words. If fewer
    words than context tokens precede the class name, an X for each token stands in place of these words.
    If the text tower has fewer than `layer` layers, A_c enters its last layer.

    Leaves: t (`text.0`), and `.weight` and `.bias` of `class.in` and `class.<index>`, initialized like
    torch.nn.Linear. The index of the layer counts from 0.
    Source: "TCP: Textual-based Class-aware Prompt Tuning", CVPR 2024 (published: 4 tokens, layer 9 of 12,
    reduction 4).
    """

    class_aware: ClassVar[bool] = True

    kind: Literal["class_aware"] = "class_aware"
    layer: int = Field(default=9, ge=2, le=1000)
    reduction: int = Field(default=4, ge=1)
    template: str | None = None

    @property
    def text_template(self) -> str | None:
        return self.template

    def initialize(self, clip: "Clip", init_ids: "Tensor", generator: "Generator") -> Leaves:
        leaves = self._initial_text(clip, init_ids, 1, generator)
        hidden = max(1, clip.embed_dim // self.reduction)
        index = min(self.layer, len(clip.text.blocks)) - 1
        num_token_values = self.text_length * clip.text.width
        shapes = {"class.in": (hidden, clip.embed_dim), f"class.{index}": (num_token_values, hidden)}
        like = leaves["text.0"]
        for name, (num_out, num_in) in shapes.items():
            shape = (num_out, num_in)
            leaves[f"{name}.weight"] = sample_linear(shape, num_in, like=like, generator=generator)
            leaves[f"{name}.bias"] = sample_linear((num_out,), num_in, like=like, generator=generator)
        return leaves

    def condition_tokens(self, tokens: Tensors, frozen_NE: "Tensor") -> Tensors:
        import torch

        hidden = frozen_NE @ tokens["class.in.weight"].T + tokens["class.in.bias"]
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        by_layer = {"text.0": tokens["text.0"]}
        for name, weight in tokens.items():
            index = name.removeprefix("class.").removesuffix(".weight")
            if name.startswith("class.") and index.isdecimal():
                flat_CW = hidden @ weight.T + tokens[f"class.{index}.bias"]
                by_layer[f"text.{index}"] = flat_CW.unflatten(-1, (self.text_length, -1))
        return by_layer


class SharedPrompts(_PromptsWithTemplates):
    """Tokens of both towers from one shared space: R W_l^T + b_l before each layer l of `layers`.

    R (`length`, `dim`) is learned, and so are W_l and b_l of each tower and layer. The tokens are inserted
    before the first of the layers, and overwritten before the later ones. Texts have no learned context.

    Leaves: `shared`, `text.<index>.weight` and `.bias`, `vision.<index>.weight` and `.bias`, where the index
    counts layers from 0. R starts as N(0, init_std^2), W_l and b_l as in torch.nn.Linear, with equal values
    in all layers of a tower. `layers` are numbered from 1. For shallower towers, see `layers_in_tower`.
    Source: "MMRL: Multi-Modal Representation Learning for Vision-Language Models", CVPR 2025 (published:
    5 tokens, dim 512, layers 6 to 12).
    """

    inserts: ClassVar[bool] = True

    kind: Literal["shared"] = "shared"
    length: int = Field(default=5, ge=1, le=64)
    dim: int = Field(default=512, ge=1, le=65_536)
    layers: LayerRange = "6-12"
    init_std: float = Field(default=0.02, ge=0)

    @property
    def num_inserted(self) -> int:
        return self.length

    def first_block(self, tower: str, num_blocks: int) -> int:
        return min(layers_in_tower(self.layers, num_blocks).values())

    @property
    def enters_images(self) -> bool:
        return True

    def initialize(self, clip: "Clip", init_ids: "Tensor", generator: "Generator") -> Leaves:
        like = clip.logit_scale
        shape = (self.length, self.dim)
        leaves: Leaves = {"shared": sample_normal(shape, self.init_std, like=like, generator=generator)}
        for name, tower in (("text", clip.text), ("vision", clip.vision)):
            weight = sample_linear((tower.width, self.dim), self.dim, like=like, generator=generator)
            bias = sample_linear((tower.width,), self.dim, like=like, generator=generator)
            for index in layers_in_tower(self.layers, len(tower.blocks)).values():
                leaves[f"{name}.{index}.weight"] = weight.clone()
                leaves[f"{name}.{index}.bias"] = bias.clone()
        return leaves

    def tokens(self, leaves: Leaves) -> Tensors:
        tokens: Tensors = {}
        for name, weight in leaves.items():
            if name.endswith(".weight"):
                place = name.removesuffix(".weight")
                tokens[place] = leaves["shared"] @ weight.T + leaves[f"{place}.bias"]
        return tokens


class CustomPrompts(CustomKindSection, Prompts):
    """Custom prompts. As with built-in prompts, `initialize` receives the token ids of `init`."""


PROMPTS = Kinds(
    {
        "none": NoPrompts,
        "independent": IndependentPrompts,
        "coupled": CoupledPrompts,
        "conditional": ConditionalPrompts,
        "class_aware": ClassAwarePrompts,
        "shared": SharedPrompts,
    },
    default="independent",
    custom=CustomPrompts,
)
