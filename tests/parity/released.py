"""Plain transcription of ProMetaR's published training loop, as a reference for our step.

The transcription encodes whole sequences of 77 tokens, and calls autograd three times per phase.
`test_released.py` compares it with recorded trajectories. It also compares our step with the transcription,
for settings of which there is no recording, too.

Shapes: B images or texts, T tokens, towers of width D, C classes. A suffix such as `_BTD` states the shape of
a tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import quick_gelu
from prometar.clip.model import Block, Clip, Tower
from prometar.step.meta_batch import Selection

Leaves = dict[str, Tensor]


def attend(tower: Tower, block: Block, x_BTD: Tensor, mask_TT: Tensor | None) -> Tensor:
    """Return the output of one block, for all tokens."""
    h = F.layer_norm(x_BTD, x_BTD.shape[-1:], block.ln_1_weight, block.ln_1_bias)
    batch, length, width = h.shape
    qkv = F.linear(h, block.in_proj_weight, block.in_proj_bias).view(batch, length, 3, tower.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.mT / (width // tower.num_heads) ** 0.5
    if mask_TT is not None:
        scores = scores + mask_TT
    out = (scores.softmax(-1) @ value).transpose(1, 2).reshape(batch, length, width)
    x_BTD = x_BTD + F.linear(out, block.out_proj_weight, block.out_proj_bias)
    h = F.layer_norm(x_BTD, x_BTD.shape[-1:], block.ln_2_weight, block.ln_2_bias)
    h = quick_gelu(F.linear(h, block.c_fc_weight, block.c_fc_bias))
    return x_BTD + F.linear(h, block.c_proj_weight, block.c_proj_bias)


def text_features(clip: Clip, tokens_CT: Tensor, prompts: Mapping[str, Tensor]) -> Tensor:
    """Return the normalized features of all classes. Prompts replace the tokens after the start token."""

    def with_prompt(x: Tensor, prompt: Tensor) -> Tensor:
        start = x[:, :1]
        after_prompt = x[:, 1 + len(prompt) :]
        return torch.cat([start, prompt.expand(len(x), -1, -1), after_prompt], dim=1)

    x = clip.token_embedding[tokens_CT]
    if "text.0" in prompts:
        x = with_prompt(x, prompts["text.0"])
    x = x + clip.text_positions
    causal_mask = torch.full((77, 77), float("-inf"), dtype=x.dtype).triu(1)
    for layer, block in enumerate(clip.text.blocks):
        # The prompt of layer 0 is already in place, because it also receives position embeddings.
        if layer > 0 and f"text.{layer}" in prompts:
            x = with_prompt(x, prompts[f"text.{layer}"])
        x = attend(clip.text, block, x, causal_mask)
    x = F.layer_norm(x, x.shape[-1:], clip.ln_final_weight, clip.ln_final_bias)
    end_C = tokens_CT.argmax(-1)  # the end token has the highest id
    return F.normalize(x[torch.arange(len(x)), end_C] @ clip.text_projection, dim=-1)


def image_features(clip: Clip, images: Tensor, prompts: Mapping[str, Tensor]) -> Tensor:
    """Return unnormalized features. Prompts follow the patches."""
    x = F.conv2d(images, clip.patch_weight, stride=clip.patch_weight.shape[-1]).flatten(2).mT
    x = torch.cat([clip.class_embedding.expand(len(x), 1, -1), x], dim=1) + clip.vision_positions
    num_image_tokens = x.shape[1]
    for layer, block in enumerate(clip.vision.blocks):
        name = f"vision.{layer}"
        if name in prompts:
            x = torch.cat([x[:, :num_image_tokens], prompts[name].expand(len(x), -1, -1)], dim=1)
        if layer == 0:
            x = F.layer_norm(x, x.shape[-1:], clip.ln_pre_weight, clip.ln_pre_bias)
        x = attend(clip.vision, block, x, None)
    x = F.layer_norm(x, x.shape[-1:], clip.ln_post_weight, clip.ln_post_bias)
    return x[:, 0] @ clip.vision_projection


@dataclass
class Released:
    """Published training loop. `step` updates `prompts` and `gate` in place.

    Args:
        clip: Frozen CLIP whose weights are not folded.
        tokens: Token ids (C, 77) of the class texts.
        teacher: Normalized text features of the frozen CLIP, one per class, for the text regularizer.
        prompts: Initial prompts by name, such as `text.0`.
        gate: Initial matrices of the gate by name, such as `text.0.in`.
        text_weight: Weight of the text regularizer.
        image_weight: Weight of the image regularizer.
        reduction: Number of consecutive scalars of a gradient that share one factor of the gate.
        inner_lr: Learning rate of the inner step.
        outer_weight: Weight of the query loss.
        prompt_lr: Learning rate of the prompts.
        gate_lr: Learning rate of the gate.
    """

    clip: Clip
    tokens: Tensor
    teacher: Tensor
    prompts: Leaves
    gate: Leaves
    text_weight: float
    image_weight: float
    reduction: int
    inner_lr: float
    outer_weight: float
    prompt_lr: float
    gate_lr: float

    def __post_init__(self) -> None:
        self.prompts = {name: leaf.clone().requires_grad_() for name, leaf in self.prompts.items()}
        self.gate = {name: leaf.clone().requires_grad_() for name, leaf in self.gate.items()}
        sgd = {"momentum": 0.9, "weight_decay": 5e-4}
        self.optimizer = torch.optim.SGD(list(self.prompts.values()), lr=self.prompt_lr, **sgd)
        self.gate_optimizer = torch.optim.SGD(list(self.gate.values()), lr=self.gate_lr, **sgd)

    def text(self, prompts: Leaves) -> Tensor:
        """Return normalized text features."""
        return text_features(self.clip, self.tokens, prompts)

    def image(self, images: Tensor, prompts: Leaves) -> Tensor:
        """Return unnormalized image features."""
        return image_features(self.clip, images, prompts)

    def losses(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the cross-entropy, and the unweighted text and image regularizers, on a batch."""
        text = self.text(self.prompts)
        image = F.normalize(self.image(images, self.prompts), dim=-1)
        with torch.no_grad():
            frozen_image = F.normalize(self.image(images, {}), dim=-1)
        ce = F.cross_entropy(self.clip.logit_scale * image @ text.T, labels)
        return ce, F.l1_loss(text, self.teacher), F.l1_loss(image, frozen_image)

    def modulated(self, losses: tuple[Tensor, Tensor, Tensor]) -> Leaves:
        """Return the modulated gradient of each prompt, from three calls of autograd."""
        ce, text_distance, image_distance = losses
        task_gradient = self.gradient_of(ce)
        text_gradient = self.gradient_of(self.text_weight * text_distance)
        image_gradient = self.gradient_of(self.image_weight * image_distance)
        modulated = {}
        for name in self.prompts:
            # Each prompt enters one tower, so only the regularizer of this tower depends on it.
            regularizer_gradient = text_gradient if name.startswith("text") else image_gradient
            modulated[name] = self.gated(name, task_gradient[name], regularizer_gradient[name])
        return modulated

    def gradient_of(self, loss: Tensor) -> Leaves:
        """Return the differentiable gradient of each prompt. None: the loss does not depend on the prompt."""
        prompts = list(self.prompts.values())
        gradients = torch.autograd.grad(loss, prompts, create_graph=True, allow_unused=True)
        return dict(zip(self.prompts, gradients, strict=True))

    def gated(self, name: str, g_task: Tensor, g_reg: Tensor) -> Tensor:
        """Return the modulated gradient g_task + m g_reg of one prompt.

        m = sigmoid(W_out W_in [g_task; g_reg]), where W_in and W_out are the prompt's matrices in the gate.
        Each factor in m weights `reduction` consecutive scalars of g_reg.
        """
        both = torch.cat([g_task.reshape(-1), g_reg.reshape(-1)])
        hidden = F.linear(both, self.gate[f"{name}.in"])
        m = F.linear(hidden, self.gate[f"{name}.out"]).sigmoid()
        return g_task + m.repeat_interleave(self.reduction).view_as(g_reg) * g_reg

    def direct(self, gradient: Leaves) -> None:
        """Update the prompts in the direct phase."""
        for name, prompt_gradient in gradient.items():
            self.prompts[name].grad = prompt_gradient.detach()
        self.optimizer.step()

    def inner(self, gradient: Leaves) -> Leaves:
        """Return the prompts after the inner step."""
        return {name: leaf - self.inner_lr * gradient[name] for name, leaf in self.prompts.items()}

    def meta(self, query_loss: Tensor) -> None:
        """Update the prompts and the gate in the meta phase."""
        self.optimizer.zero_grad()
        self.gate_optimizer.zero_grad()
        (self.outer_weight * query_loss).backward()
        self.optimizer.step()
        self.gate_optimizer.step()

    def step(self, images: Tensor, labels: Tensor, selection: Selection | None) -> dict[str, float]:
        """Run the direct phase and, if there is a selection of support and query, the meta phase.

        Return the losses by name, such as `direct_ce`.
        """
        losses = self.losses(images, labels)
        log = logged("direct", losses)
        self.direct(self.modulated(losses))
        if selection is None:
            return log
        support_losses = self.losses(images[selection.support_rows], labels[selection.support_rows])
        log |= logged("support", support_losses)
        adapted = self.inner(self.modulated(support_losses))
        query_loss = self.query_loss(adapted, images, labels, selection)
        log["query_loss"] = float(query_loss.detach())
        self.meta(query_loss)
        return log

    def query_loss(self, adapted: Leaves, images: Tensor, labels: Tensor, selection: Selection) -> Tensor:
        """Return the cross-entropy of the mixed query images with adapted prompts."""
        assert selection.partners is not None
        mix = selection.partners.mix
        text = self.text(adapted)
        query = self.image(images[selection.query_rows], adapted)
        partners = self.image(images[selection.support_rows], adapted)[mix.partner]
        query_share = mix.lam.to(query)
        partner_share = (1 - mix.lam).to(query)
        mixed = F.normalize(query_share[:, None] * query + partner_share[:, None] * partners, dim=-1)
        logits = self.clip.logit_scale * mixed @ text.T
        partner_labels = labels[selection.support_rows][mix.partner]
        query_ce = F.cross_entropy(logits, labels[selection.query_rows], reduction="none")
        partner_ce = F.cross_entropy(logits, partner_labels, reduction="none")
        return (query_share * query_ce + partner_share * partner_ce).mean()


def logged(phase: str, losses: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Return the results of `Released.losses` as numbers by name, such as `direct_ce`."""
    ce, text_distance, image_distance = losses
    return {
        f"{phase}_ce": float(ce.detach()),
        f"{phase}_text": float(text_distance.detach()),
        f"{phase}_image": float(image_distance.detach()),
    }
