"""ProMetaR's whole step on any prompts, written plainly: whole towers, one graph, torch.optim.SGD."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.backbone.weights import Clip
from prometar.parts.tasks import TaskDraw
from tests.parity.released import image_features, text_features

Leaves = dict[str, Tensor]


@dataclass
class PlainMeta:
    """Both phases; the gate sees the gradients at the towers' tokens."""

    clip: Clip
    tokens_CT: Tensor
    frozen_text_CE: Tensor
    leaves: Leaves
    gate: Leaves
    text_weight: float
    image_weight: float
    reduction: int
    inner_lr: float
    outer_weight: float
    prompt_lr: float
    gate_lr: float

    def __post_init__(self) -> None:
        self.leaves = {name: leaf.clone().requires_grad_() for name, leaf in self.leaves.items()}
        self.gate = {name: leaf.clone().requires_grad_() for name, leaf in self.gate.items()}
        groups = ((self.leaves, self.prompt_lr), (self.gate, self.gate_lr))
        self.optimizers = [
            torch.optim.SGD(list(group.values()), lr=lr, momentum=0.9, weight_decay=5e-4)
            for group, lr in groups
        ]

    @staticmethod
    def tokens(leaves: Leaves) -> Leaves:
        """Each a variable of its own: what a text token does through a coupled one is not its gradient."""
        tokens = {name: leaf.view_as(leaf) for name, leaf in leaves.items() if name.count(".") == 1}
        for name in [name for name in leaves if name.endswith(".weight")]:
            layer = name.removesuffix(".weight")
            text = leaves[layer.replace("vision", "text")]
            tokens[layer] = F.linear(text, leaves[name], leaves[f"{layer}.bias"])
        return tokens

    def features(self, tokens: Leaves, images: Tensor) -> tuple[Tensor, Tensor]:
        return text_features(self.clip, self.tokens_CT, tokens), image_features(self.clip, images, tokens)

    def modulated(self, images: Tensor, labels: Tensor) -> Leaves:
        tokens = self.tokens(self.leaves)
        text, image = self.features(tokens, images)
        image = F.normalize(image, dim=-1)
        frozen = F.normalize(image_features(self.clip, images, {}), dim=-1)
        task = F.cross_entropy(self.clip.logit_scale * image @ text.T, labels)
        held = self.text_weight * F.l1_loss(text, self.frozen_text_CE)
        held = held + self.image_weight * F.l1_loss(image, frozen)
        options = {"create_graph": True, "materialize_grads": True}
        g_task, g_reg = (torch.autograd.grad(x, list(tokens.values()), **options) for x in (task, held))
        joined = []
        for name, a, b in zip(tokens, g_task, g_reg, strict=True):
            hidden = F.linear(torch.cat([a.reshape(-1), b.reshape(-1)]), self.gate[f"{name}.in"])
            strength = F.linear(hidden, self.gate[f"{name}.out"]).sigmoid()
            joined.append(a + strength.repeat_interleave(self.reduction).view_as(b) * b)
        pulled = torch.autograd.grad(list(tokens.values()), list(self.leaves.values()), joined, **options)
        return dict(zip(self.leaves, pulled, strict=True))

    def step(self, images: Tensor, labels: Tensor, task: TaskDraw) -> None:
        for name, gradient in self.modulated(images, labels).items():
            self.leaves[name].grad = gradient.detach()
        self.optimizers[0].step()
        gradient = self.modulated(images[~task.is_query], labels[~task.is_query])
        adapted = {name: leaf - self.inner_lr * gradient[name] for name, leaf in self.leaves.items()}
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        (self.outer_weight * self.query_loss(adapted, images, labels, task)).backward()
        for optimizer in self.optimizers:
            optimizer.step()

    def query_loss(self, adapted: Leaves, images: Tensor, labels: Tensor, task: TaskDraw) -> Tensor:
        assert task.mix is not None
        text, features = self.features(self.tokens(adapted), images)
        own, other = features[task.is_query], features[~task.is_query][task.mix.partner]
        lam = task.mix.lam.to(own)
        mixed = F.normalize(lam[:, None] * own + (1 - lam)[:, None] * other, dim=-1)
        logits = self.clip.logit_scale * mixed @ text.T
        losses = [
            F.cross_entropy(logits, target, reduction="none")
            for target in (labels[task.is_query], labels[~task.is_query][task.mix.partner])
        ]
        return (lam * losses[0] + (1 - lam) * losses[1]).mean()
