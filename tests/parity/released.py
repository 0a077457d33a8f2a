"""Plain transcription of the published training loop, as a reference for our step.

It encodes whole sequences of 77 tokens, and calls autograd three times per phase. `test_released.py` compares
it with recorded trajectories, and our step with it, also for settings without a recording.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prometar.clip.activations import quick_gelu
from prometar.clip.model import Block, Clip, Tower
from prometar.step.meta_batch import Selection

Leaves = dict[str, Tensor]


def attend(tower: Tower, block: Block, x_BTD: Tensor, mask_TT: Tensor | None) -> Tensor:
    """Apply one block to all tokens."""
    h = F.layer_norm(x_BTD, x_BTD.shape[-1:], block.ln_1_weight, block.ln_1_bias)
    batch, length, width = h.shape
    qkv = F.linear(h, block.in_proj_weight, block.in_proj_bias).view(batch, length, 3, tower.num_heads, -1)
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    scores = query @ key.mT / (width // tower.num_heads) ** 0.5
    weights = (scores if mask_TT is None else scores + mask_TT).softmax(-1)
    out = (weights @ value).transpose(1, 2).reshape(batch, length, width)
    x_BTD = x_BTD + F.linear(out, block.out_proj_weight, block.out_proj_bias)
    h = F.layer_norm(x_BTD, x_BTD.shape[-1:], block.ln_2_weight, block.ln_2_bias)
    h = quick_gelu(F.linear(h, block.c_fc_weight, block.c_fc_bias))
    return x_BTD + F.linear(h, block.c_proj_weight, block.c_proj_bias)


def text_features(clip: Clip, tokens_CT: Tensor, prompts: Mapping[str, Tensor]) -> Tensor:
    """Return the normalized features of all classes. Prompts follow the start token."""

    def put(x: Tensor, prompt: Tensor) -> Tensor:
        return torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1 + len(prompt) :]], dim=1)

    x = clip.token_embedding[tokens_CT]
    x = (put(x, prompts["text.0"]) if "text.0" in prompts else x) + clip.text_positions
    mask = torch.full((77, 77), float("-inf"), dtype=x.dtype).triu(1)
    for layer, block in enumerate(clip.text.blocks):
        if layer and f"text.{layer}" in prompts:
            x = put(x, prompts[f"text.{layer}"])
        x = attend(clip.text, block, x, mask)
    x = F.layer_norm(x, x.shape[-1:], clip.ln_final_weight, clip.ln_final_bias)
    return F.normalize(x[torch.arange(len(x)), tokens_CT.argmax(-1)] @ clip.text_projection, dim=-1)


def image_features(clip: Clip, images: Tensor, prompts: Mapping[str, Tensor]) -> Tensor:
    """Return unnormalized features. Prompts follow the patches."""
    x = F.conv2d(images, clip.patch_weight, stride=clip.patch_weight.shape[-1]).flatten(2).mT
    x = torch.cat([clip.class_embedding.expand(len(x), 1, -1), x], dim=1) + clip.vision_positions
    num_own = x.shape[1]
    for layer in range(len(clip.vision.blocks)):
        name = f"vision.{layer}"
        if name in prompts:
            x = torch.cat([x[:, :num_own], prompts[name].expand(len(x), -1, -1)], dim=1)
        if layer == 0:
            x = F.layer_norm(x, x.shape[-1:], clip.ln_pre_weight, clip.ln_pre_bias)
        x = attend(clip.vision, clip.vision.blocks[layer], x, None)
    x = F.layer_norm(x, x.shape[-1:], clip.ln_post_weight, clip.ln_post_bias)
    return x[:, 0] @ clip.vision_projection


@dataclass
class Released:
    """Published training loop. `step` returns the losses that it logs."""

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
        self.prompts = {k: v.clone().requires_grad_() for k, v in self.prompts.items()}
        self.gate = {k: v.clone().requires_grad_() for k, v in self.gate.items()}
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
        """Return the cross-entropy and both unweighted regularizers on a batch."""
        g = self.text(self.prompts)
        f = F.normalize(self.image(images, self.prompts), dim=-1)
        with torch.no_grad():
            f0 = F.normalize(self.image(images, {}), dim=-1)
        ce = F.cross_entropy(self.clip.logit_scale * f @ g.T, labels)
        return ce, F.l1_loss(g, self.teacher), F.l1_loss(f, f0)

    def modulated(self, losses: tuple[Tensor, Tensor, Tensor]) -> Leaves:
        """Return the modulated gradient of each prompt, from three calls of autograd."""
        ce, text, image = losses
        leaves = list(self.prompts.values())
        task_grads, text_grads, image_grads = (
            torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
            for loss in (ce, self.text_weight * text, self.image_weight * image)
        )
        out = {}
        for index, name in enumerate(self.prompts):
            regularizer_grads = text_grads if name.startswith("text") else image_grads
            out[name] = self.gated(name, task_grads[index], regularizer_grads[index])
        return out

    def gated(self, name: str, g_task: Tensor, g_reg: Tensor) -> Tensor:
        """Return the modulated gradient of one prompt."""
        hidden = F.linear(torch.cat([g_task.reshape(-1), g_reg.reshape(-1)]), self.gate[f"{name}.in"])
        strength = F.linear(hidden, self.gate[f"{name}.out"]).sigmoid()
        return g_task + strength.repeat_interleave(self.reduction).view_as(g_reg) * g_reg

    def direct(self, gradient: Leaves) -> None:
        """Update the prompts in the direct phase."""
        for name, value in gradient.items():
            self.prompts[name].grad = value.detach()
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

    def step(self, images: Tensor, labels: Tensor, task: Selection | None) -> dict[str, float]:
        losses = self.losses(images, labels)
        log = {f"direct_{k}": float(v.detach()) for k, v in zip(("ce", "text", "image"), losses, strict=True)}
        self.direct(self.modulated(losses))
        if task is None:
            return log
        support = self.losses(images[task.support_rows], labels[task.support_rows])
        log |= {
            f"support_{k}": float(v.detach()) for k, v in zip(("ce", "text", "image"), support, strict=True)
        }
        query_loss = self.query_loss(self.inner(self.modulated(support)), images, labels, task)
        log["query_loss"] = float(query_loss.detach())
        self.meta(query_loss)
        return log

    def query_loss(self, adapted: Leaves, images: Tensor, labels: Tensor, task: Selection) -> Tensor:
        """Return the cross-entropy of the mixed query images with adapted prompts."""
        assert task.partners is not None
        mix = task.partners.mix
        g = self.text(adapted)
        query = self.image(images[task.query_rows], adapted)
        partners = self.image(images[task.support_rows], adapted)[mix.partner]
        query_share = mix.lam.to(query)
        partner_share = (1 - mix.lam).to(query)
        mixed = F.normalize(query_share[:, None] * query + partner_share[:, None] * partners, dim=-1)
        logits = self.clip.logit_scale * mixed @ g.T
        own = nn.CrossEntropyLoss(reduction="none")(logits, labels[task.query_rows])
        other = nn.CrossEntropyLoss(reduction="none")(logits, labels[task.support_rows][mix.partner])
        return (query_share * own + partner_share * other).mean()
