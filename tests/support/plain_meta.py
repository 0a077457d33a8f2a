"""ProMetaR's step on any prompts, plainly: the released procedure where tokens may be made of others."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.step.task_selection import TaskDraw
from tests.parity.released import Leaves, Released, image_features, text_features


@dataclass
class PlainMeta(Released):
    """Both phases on any prompts; the gate sees the gradients at the towers' tokens."""

    @staticmethod
    def made(leaves: Leaves) -> Leaves:
        """Each a variable of its own: what a text token does through a coupled one is not its gradient."""
        tokens = {name: leaf.view_as(leaf) for name, leaf in leaves.items() if name.count(".") == 1}
        for name in [name for name in leaves if name.endswith(".weight")]:
            layer = name.removesuffix(".weight")
            text = leaves[layer.replace("vision", "text")]
            tokens[layer] = F.linear(text, leaves[name], leaves[f"{layer}.bias"])
        return tokens

    def gradient(self, images: Tensor, labels: Tensor) -> Leaves:
        tokens = self.made(self.prompts)
        text = text_features(self.clip, self.tokens, tokens)
        image = F.normalize(image_features(self.clip, images, tokens), dim=-1)
        frozen = F.normalize(image_features(self.clip, images, {}), dim=-1)
        task = F.cross_entropy(self.clip.logit_scale * image @ text.T, labels)
        held = self.text_weight * F.l1_loss(text, self.teacher)
        held = held + self.image_weight * F.l1_loss(image, frozen)
        options = {"create_graph": True, "materialize_grads": True}
        g_task, g_reg = (torch.autograd.grad(x, list(tokens.values()), **options) for x in (task, held))
        joined = [self.gated(name, a, b) for name, a, b in zip(tokens, g_task, g_reg, strict=True)]
        pulled = torch.autograd.grad(list(tokens.values()), list(self.prompts.values()), joined, **options)
        return dict(zip(self.prompts, pulled, strict=True))

    def query_loss(self, adapted: Leaves, images: Tensor, labels: Tensor, task: TaskDraw) -> Tensor:
        return super().query_loss(self.made(adapted), images, labels, task)

    def train(self, images: Tensor, labels: Tensor, task: TaskDraw) -> None:
        self.direct(self.gradient(images, labels))
        support = self.gradient(images[~task.is_query], labels[~task.is_query])
        self.meta(self.query_loss(self.inner(support), images, labels, task))
