"""Methods without a meta phase, written as their papers do: modules, one loss, torch.optim.SGD, whole towers.

Each takes the leaves it starts from, so that the composed method can be held to it step by step.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prometar.clip.model import Clip
from tests.parity.released import image_features, text_features

Leaves = Mapping[str, Tensor]


@dataclass
class Plain:
    """A method's loss on a batch, minimised by SGD.

    Args:
        tokens_CT: Token ids of the classes' texts. frozen_text_CE: What a regularizer holds the text to.
        coupled: The vision tower's tokens are nn.Linear maps of the text's.
    """

    clip: Clip
    tokens_CT: Tensor
    frozen_text_CE: Tensor
    coupled: bool

    def start(self, leaves: Leaves, lr: float) -> None:
        self.tokens = {name: nn.Parameter(leaf.clone()) for name, leaf in leaves.items() if leaf.ndim == 2}
        self.maps: dict[str, nn.Linear] = {}
        if self.coupled:
            for name in [name for name in self.tokens if name.endswith("weight")]:
                weight, bias = (
                    self.tokens.pop(name),
                    nn.Parameter(leaves[name.replace("weight", "bias")].clone()),
                )
                linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
                linear.weight, linear.bias = weight, bias
                self.maps[name.removesuffix(".weight")] = linear
        self.parameters = [*self.tokens.values(), *(p for m in self.maps.values() for p in m.parameters())]
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    def leaves(self) -> dict[str, Tensor]:
        found = {name: token.detach() for name, token in self.tokens.items()}
        for name, linear in self.maps.items():
            found |= {f"{name}.weight": linear.weight.detach(), f"{name}.bias": linear.bias.detach()}
        return found

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normalised text features, image features, and the frozen image features."""
        prompts: dict[str, Tensor] = dict(self.tokens)
        prompts |= {name: m(self.tokens[name.replace("vision", "text")]) for name, m in self.maps.items()}
        text = text_features(self.clip, self.tokens_CT, prompts)
        image = F.normalize(image_features(self.clip, images, prompts), dim=-1)
        with torch.no_grad():
            frozen = F.normalize(image_features(self.clip, images, {}), dim=-1)
        return text, image, frozen

    def step(self, method: str, images: Tensor, labels: Tensor) -> None:
        text, image, frozen_image = self.features(images)
        logits = self.clip.logit_scale * image @ text.T
        loss = F.cross_entropy(logits, labels)
        if method == "kgcoop":
            loss = loss + 8 * (1 - F.cosine_similarity(text, self.frozen_text_CE).mean())
        frozen_logits = self.clip.logit_scale * frozen_image @ self.frozen_text_CE.T
        if method == "promptsrc":
            divergence = F.kl_div(
                logits.log_softmax(1), frozen_logits.log_softmax(1), reduction="sum", log_target=True
            )
            loss = loss + divergence / logits.numel()
            loss = loss + 25 * F.l1_loss(text, self.frozen_text_CE) + 10 * F.l1_loss(image, frozen_image)
        self.optimizer.zero_grad()
        if method == "prograd":
            held = -(frozen_logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            held.backward(retain_graph=True)
        general = {parameter: parameter.grad for parameter in self.parameters}
        self.optimizer.zero_grad()
        loss.backward()
        for parameter, direction in general.items():
            if direction is not None:
                parameter.grad = without_conflict(parameter.grad, direction)
        self.optimizer.step()


def without_conflict(gradient: Tensor | None, direction: Tensor) -> Tensor:
    """The gradient, at a right angle to a direction that it points away from."""
    assert gradient is not None
    unit = direction / direction.norm()
    along = torch.dot(gradient.flatten(), unit.flatten())
    return gradient - along * unit if along < 0 else gradient
