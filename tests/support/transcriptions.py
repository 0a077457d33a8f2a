"""Plain transcriptions of TCP, MMA, MMRL, DePT and CoPrompt. Benchmarks compare speed and memory with them.

They are what a user would write from the official code. Whole sequences of 77 tokens pass both towers, and
there is one loss, autograd, and an optimizer of torch. As in the official code, frozen weights require no
gradients, attention is torch's fused one, and frozen text features are computed once. The learned tensors
have the names that they have in the package.

`tests/parity/test_transcriptions.py` compares them with recordings of the official code and with the package.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import QUICK_GELU_FACTOR
from prometar.clip.model import Clip, Tower
from prometar.config.settings import Config
from prometar.methods.layers import layers_in_tower
from prometar.methods.prompts import Leaves

Before = Callable[[int, Tensor], Tensor]
"""Function that changes the input of a block (rows, tokens, width), given the block's index."""

Beside = Callable[[int, Tensor], Tensor | None]
"""Function of a block's index and normed input. Its result, if any, is added to the block's output."""


def unchanged(index: int, x: Tensor) -> Tensor:
    """Return the input of a block as it is."""
    return x


def nothing(index: int, normed: Tensor) -> None:
    """Add nothing to the output of a block."""


@dataclass
class Transcription(ABC):
    """One method, trained by `step`.

    Args:
        clip: Frozen CLIP, not folded.
        config: Settings of the method.
        ids_CT: Token ids of the class texts.
        leaves: Initial values of the learned tensors.
        teacher: Frozen text features, or None. (N, C, E) if one of N texts is drawn per step.
    """

    clip: Clip
    config: Config
    ids_CT: Tensor
    leaves: Leaves
    teacher: Tensor | None = None

    def __post_init__(self) -> None:
        self.leaves = {name: leaf.clone().requires_grad_() for name, leaf in self.leaves.items()}
        # The official code looks embeddings up once.
        self.embedded_CTD = self.clip.token_embedding[self.ids_CT]
        self.optimizer = self._optimizer()

    @abstractmethod
    def loss(
        self, images: Tensor, labels: Tensor, *, second_view: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        """Return the loss of a batch of normalized images.

        Args:
            second_view: The same images, augmented again. Only CoPrompt uses them.
            draw: Index of the step's text among the N texts of `teacher`. Only CoPrompt uses it.
        """

    def step(
        self, images: Tensor, labels: Tensor, *, second_view: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        """Train on a batch. Return its loss. The arguments are those of `loss`."""
        self.optimizer.zero_grad()
        loss = self.loss(images, labels, second_view=second_view, draw=draw)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def _optimizer(self) -> torch.optim.Optimizer:
        """Return torch's optimizer with the method's settings. Logits can have their own learning rate."""
        optim = self.config.optim
        heads = [leaf for name, leaf in self.leaves.items() if name.startswith("logits.")]
        others = [leaf for name, leaf in self.leaves.items() if not name.startswith("logits.")]
        groups = [{"params": others, "lr": optim.lr}]
        if heads:
            groups.append({"params": heads, "lr": optim.lr * optim.lr_factors.get("logits", 1.0)})
        common = {"lr": optim.lr, "weight_decay": optim.weight_decay}
        if optim.kind == "sgd":
            return torch.optim.SGD(groups, momentum=optim.momentum, **common)
        kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
        return kinds[optim.kind](groups, betas=(optim.beta1, optim.beta2), eps=optim.eps, **common)

    def _in_tower(self, name: str) -> Tensor:
        """Return a leaf in the precision of the towers."""
        return self.leaves[name].to(self.clip.dtype)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        """Apply the learned linear layer `name`."""
        return F.linear(x, self.leaves[f"{name}.weight"], self.leaves[f"{name}.bias"])

    def _text(
        self, x_CTD: Tensor, *, before: Before = unchanged, beside: Beside = nothing, shift: int = 0
    ) -> Tensor:
        """Return the text features (C, E), read `shift` tokens after the end tokens."""
        clip = self.clip
        x = through(clip.text, x_CTD, before=before, beside=beside, causal=True)
        x = F.layer_norm(x, x.shape[-1:], clip.ln_final_weight, clip.ln_final_bias, clip.text.eps)
        ends = self.ids_CT.argmax(dim=-1) + shift
        features = x[torch.arange(len(x), device=x.device), ends] @ clip.text_projection
        return features.to(clip.working_dtype)

    def _image(self, images: Tensor, *, before: Before = unchanged, beside: Beside = nothing) -> Tensor:
        """Return the image features (B, E)."""
        x = self._image_tokens(images)
        return self._image_feature(through(self.clip.vision, self._pre(x), before=before, beside=beside))

    @torch.no_grad()
    def _frozen_image(self, images: Tensor) -> Tensor:
        """Return the normalized image features (B, E) of the frozen CLIP."""
        return F.normalize(self._image(images), dim=-1)

    def _image_tokens(self, images: Tensor) -> Tensor:
        """Return the class token and the patches (B, 1 + patches, D), with positions."""
        clip = self.clip
        patches = F.conv2d(images, clip.patch_weight, stride=clip.patch_weight.shape[-1])
        x = patches.flatten(2).transpose(1, 2)
        return torch.cat([clip.class_embedding.expand(len(x), 1, -1), x], dim=1) + clip.vision_positions

    def _pre(self, x: Tensor) -> Tensor:
        """Apply the LayerNorm before the blocks of the vision tower."""
        return F.layer_norm(
            x, x.shape[-1:], self.clip.ln_pre_weight, self.clip.ln_pre_bias, self.clip.vision.eps
        )

    def _post(self, x: Tensor) -> Tensor:
        """Apply the LayerNorm after the blocks of the vision tower."""
        return F.layer_norm(
            x, x.shape[-1:], self.clip.ln_post_weight, self.clip.ln_post_bias, self.clip.vision.eps
        )

    def _image_feature(self, x: Tensor) -> Tensor:
        """Return the image features (B, E) of the blocks' output, which are read at the class token."""
        return (self._post(x[:, 0]) @ self.clip.vision_projection).to(self.clip.working_dtype)


def through(
    tower: Tower, x: Tensor, *, before: Before = unchanged, beside: Beside = nothing, causal: bool = False
) -> Tensor:
    """Return the output of all blocks of a tower.

    Args:
        tower: Frozen tower.
        x: (rows, tokens, width) input.
        before: Function that changes the input of each block.
        beside: Function whose result is added to the output of each block.
        causal: True if a token sees only the tokens before it.
    """
    for index, block in enumerate(tower.blocks):
        x = before(index, x)

        # Attention
        normed = F.layer_norm(x, x.shape[-1:], block.ln_1_weight, block.ln_1_bias, tower.eps)
        qkv = F.linear(normed, block.in_proj_weight, block.in_proj_bias)
        q, k, v = qkv.unflatten(-1, (3, tower.num_heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        attended = attended.transpose(1, 2).flatten(2)
        z = x + F.linear(attended, block.out_proj_weight, block.out_proj_bias)

        # MLP
        h = F.layer_norm(z, z.shape[-1:], block.ln_2_weight, block.ln_2_bias, tower.eps)
        h = F.linear(h, block.c_fc_weight, block.c_fc_bias)
        h = h * torch.sigmoid(QUICK_GELU_FACTOR * h)
        x = z + F.linear(h, block.c_proj_weight, block.c_proj_bias)

        added = beside(index, normed)
        if added is not None:
            x = x + added
    return x


def replaced(x: Tensor, first: int, tokens: Tensor) -> Tensor:
    """Return the rows with `tokens`, (P, D) or (rows, P, D), from position `first` on."""
    rows = tokens.expand(len(x), -1, -1)
    return torch.cat([x[:, :first], rows, x[:, first + rows.shape[1] :]], dim=1)


def inserted(x: Tensor, first: int, tokens: Tensor) -> Tensor:
    """Return the rows with `tokens` (P, D) inserted before position `first`."""
    return torch.cat([x[:, :first], tokens.expand(len(x), -1, -1), x[:, first:]], dim=1)


def cosine_distance(features: Tensor, frozen: Tensor) -> Tensor:
    """Return 1 minus the mean cosine of corresponding rows."""
    return 1 - F.cosine_similarity(features, frozen, dim=-1).mean()


def _block_index(name: str) -> int:
    """Return the index of the block for whose input a layer computes tokens, e.g. 8 for "class.8.weight"."""
    return int(name.split(".")[1])


def similarity(scale: Tensor | float, image: Tensor, text: Tensor) -> Tensor:
    """Return the logits (B, C): scaled cosines of image and text features."""
    return scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


class Tcp(Transcription):
    """TCP: class-aware tokens enter a middle layer of the text tower."""

    def loss(
        self, images: Tensor, labels: Tensor, *, second_view: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        assert self.teacher is not None
        # The leaves are class.in.* and class.INDEX.*, where the class-aware tokens enter block INDEX.
        weights = [name for name in self.leaves if name.startswith("class.") and name.endswith(".weight")]
        [index] = [_block_index(name) for name in weights if name != "class.in.weight"]
        hidden = self._linear("class.in", self.teacher)
        hidden = hidden * torch.sigmoid(QUICK_GELU_FACTOR * hidden)
        aware = self._linear(f"class.{index}", hidden).unflatten(-1, (-1, self.clip.text.width))
        aware = aware.to(self.clip.dtype)

        def before(block: int, x: Tensor) -> Tensor:
            return replaced(x, 1, aware) if block == index else x

        x = replaced(self.embedded_CTD, 1, self._in_tower("text.0")) + self.clip.text_positions
        text = self._text(x, before=before)
        logits = similarity(self.clip.logit_scale, self._image(images), text)
        weight = self.config.regularizer.text_weight
        return F.cross_entropy(logits, labels) + weight * cosine_distance(text, self.teacher)


class Mma(Transcription):
    """MMA: adapters parallel to the blocks.

    As in the official code, hooks keep the scale out of the gradients of the up-projection, and apply it to
    the gradient of the adapter's input.
    """

    def loss(
        self, images: Tensor, labels: Tensor, *, second_view: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        text = self._text(self.embedded_CTD + self.clip.text_positions, beside=self._beside("text"))
        image = self._image(images, beside=self._beside("vision"))
        return F.cross_entropy(similarity(self.clip.logit_scale, image, text), labels)

    def _beside(self, name: str) -> Beside:
        """Return the adapters of the tower `name`, "text" or "vision"."""
        adapters = self.config.adapters
        tower: Tower = getattr(self.clip, name)
        layers = layers_in_tower(adapters.layers, len(tower.blocks))
        layer_of_block = {index: layer for layer, index in layers.items()}
        scale = adapters.scale

        def apply(part: str, x: Tensor) -> Tensor:
            weight = self._in_tower(f"adapters.{part}.weight")
            return F.linear(x, weight, self._in_tower(f"adapters.{part}.bias"))

        def beside(index: int, normed: Tensor) -> Tensor | None:
            if index not in layer_of_block:
                return None
            layer = layer_of_block[index]
            if normed.requires_grad:
                normed = normed.view_as(normed)
                normed.register_hook(lambda g: g * scale)
            hidden = apply(f"{name}.{layer}.down", normed).relu()
            hidden = apply(f"shared.{layer}", hidden).relu()
            y = apply(f"{name}.{layer}.up", hidden)
            y.register_hook(lambda g: g / scale)
            return y * scale

        return beside


class Mmrl(Transcription):
    """MMRL: representation tokens of both towers, from one shared space, are inserted in a middle layer."""

    def loss(
        self, images: Tensor, labels: Tensor, *, second_view: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        assert self.teacher is not None
        frozen = self._frozen_image(images)
        num_tokens = len(self.leaves["shared"])
        embedded = self.embedded_CTD + self.clip.text_positions
        text = self._text(embedded, before=self._before("text"), shift=num_tokens)
        x = through(self.clip.vision, self._pre(self._image_tokens(images)), before=self._before("vision"))
        image = self._image_feature(x)
        outputs = self._post(x[:, 1 : 1 + num_tokens]).mean(dim=1).to(self.clip.working_dtype)
        representation = outputs @ self.leaves["features.projection"]
        fused = self.config.logits
        main = F.cross_entropy(similarity(fused.scale, image, text), labels)
        second = F.cross_entropy(similarity(fused.scale, representation, text), labels)
        regularizer = self.config.regularizer
        regularization = regularizer.image_weight * cosine_distance(image, frozen)
        regularization = regularization + regularizer.text_weight * cosine_distance(text, self.teacher)
        return fused.weight * main + (1 - fused.weight) * second + regularization

    def _before(self, tower: str) -> Before:
        """Return the function that inserts the tokens of a tower, and replaces them in later blocks."""
        prefix = f"{tower}."
        tokens: dict[int, Tensor] = {}
        for name in self.leaves:
            if name.startswith(prefix) and name.endswith(".weight"):
                made = self._linear(name.removesuffix(".weight"), self.leaves["shared"])
                tokens[_block_index(name)] = made.to(self.clip.dtype)
        first = min(tokens)

        def before(index: int, x: Tensor) -> Tensor:
            if index not in tokens:
                return x
            if index == first:
                return inserted(x, 1, tokens[index])
            return replaced(x, 1, tokens[index])

        return before


class WithContext(Transcription):
    """Prompts of CoOp (a text context), or of MaPLe (tokens of both towers, coupled by linear layers)."""

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of all texts and of the images."""
        text_tokens: dict[int, Tensor] = {}
        image_tokens: dict[int, Tensor] = {}
        for name in self.leaves:
            tower, _, rest = name.partition(".")
            if tower == "text":
                text_tokens[int(rest)] = self._in_tower(name)
            elif tower == "vision" and rest.endswith(".weight"):
                layer = rest.removesuffix(".weight")
                made = self._linear(f"vision.{layer}", self.leaves[f"text.{layer}"])
                image_tokens[int(layer)] = made.to(self.clip.dtype)
        x = replaced(self.embedded_CTD, 1, text_tokens[0]) + self.clip.text_positions

        def before_text(index: int, x: Tensor) -> Tensor:
            if index == 0 or index not in text_tokens:
                return x
            return replaced(x, 1, text_tokens[index])

        text = self._text(x, before=before_text)
        if not image_tokens:
            return text, self._image(images)
        x = self._image_tokens(images)
        num_own = x.shape[1]
        x = torch.cat([x, image_tokens[0].expand(len(x), -1, -1)], dim=1)

        def before_image(index: int, x: Tensor) -> Tensor:
            if index == 0 or index not in image_tokens:
                return x
            return replaced(x, num_own, image_tokens[index])

        x = through(self.clip.vision, self._pre(x), before=before_image)
        return text, self._image_feature(x)


class Dept(WithContext):
    """DePT around CoOp, KgCoOp or MaPLe: a linear head on features of the training classes."""

    def loss(
        self, images: Tensor, labels: Tensor, *, second_view: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        text, image = self._features(images)
        logits = similarity(self.clip.logit_scale, image, text)
        rows = torch.cat([self._scaled("text", text[labels]), self._scaled("image", image)])
        head_loss = F.cross_entropy(self._linear("logits", rows), torch.cat([labels, labels]))
        weight = self.config.logits.weight
        loss = (1 - weight) * F.cross_entropy(logits, labels) + weight * head_loss
        if self.teacher is None:
            return loss
        return loss + self.config.regularizer.text_weight * cosine_distance(text, self.teacher)

    def _scaled(self, kind: str, x: Tensor) -> Tensor:
        """Apply the learned scale and shift of text or image features."""
        return self.leaves[f"logits.{kind}.scale"] * x + self.leaves[f"logits.{kind}.shift"]


class CoPrompt(WithContext):
    """CoPrompt: MaPLe with adapters on the features, near frozen features of another view and other texts."""

    def loss(
        self, images: Tensor, labels: Tensor, *, second_view: Tensor | None = None, draw: int = 0
    ) -> Tensor:
        assert second_view is not None
        assert self.teacher is not None
        frozen = self._frozen_image(second_view)
        text, image = self._features(images)
        features = self.config.features
        text = self._adapted("text", text, features.text_share)
        image = self._adapted("image", image, features.image_share)
        regularizer = self.config.regularizer
        regularization = regularizer.text_weight * cosine_distance(text, self.teacher[draw])
        regularization = regularization + regularizer.image_weight * cosine_distance(image, frozen)
        return F.cross_entropy(similarity(self.clip.logit_scale, image, text), labels) + regularization

    def _adapted(self, name: str, x: Tensor, share: float) -> Tensor:
        """Return features of which `share` comes from the adapter `name`."""
        hidden = F.linear(x, self.leaves[f"features.{name}.in"]).relu()
        return share * F.linear(hidden, self.leaves[f"features.{name}.out"]).relu() + (1 - share) * x


TRANSCRIPTIONS: Mapping[str, type[Transcription]] = {
    "tcp": Tcp,
    "mma": Mma,
    "mmrl": Mmrl,
    "dept-coop": Dept,
    "dept-kgcoop": Dept,
    "dept-maple": Dept,
    "coprompt": CoPrompt,
}
"""Transcription of each method."""
