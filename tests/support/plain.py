"""Plain implementations of the methods' papers, with modules, one loss, torch.optim.SGD and whole towers.

Each starts from given leaves, so that tests can compare the composed method with it step by step.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prometar.clip.model import Clip
from prometar.step.meta_batch import Selection
from tests.parity.released import Leaves, Released, image_features, text_features


@dataclass
class Plain:
    """Method without a meta phase, trained by SGD on the loss of a batch.

    Args:
        tokens_CT: Token ids of the classes' texts. frozen_text_CE: Frozen text features for the regularizer.
        coupled: True if nn.Linear layers compute the vision tower's tokens from the text tower's.
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
                weight = self.tokens.pop(name)
                bias = nn.Parameter(leaves[name.replace("weight", "bias")].clone())
                linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
                linear.weight = weight
                linear.bias = bias
                self.maps[name.removesuffix(".weight")] = linear
        self.parameters = [*self.tokens.values(), *(p for m in self.maps.values() for p in m.parameters())]
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    def leaves(self) -> dict[str, Tensor]:
        found = {name: token.detach() for name, token in self.tokens.items()}
        for name, linear in self.maps.items():
            found |= {f"{name}.weight": linear.weight.detach(), f"{name}.bias": linear.bias.detach()}
        return found

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalized text features, image features, and frozen image features."""
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
    """Return the gradient without its component along `direction` if they conflict."""
    assert gradient is not None
    unit = direction / direction.norm()
    along = torch.dot(gradient.flatten(), unit.flatten())
    return gradient - along * unit if along < 0 else gradient


@dataclass
class PlainConditional:
    """CoCoOp: a network shifts the context by the image's feature, so each image has its own texts.

    Images are encoded one by one. SGD minimizes the cross-entropy of the batch.
    """

    clip: Clip
    tokens_CT: Tensor

    def start(self, leaves: dict[str, Tensor], lr: float) -> None:
        self.context = nn.Parameter(leaves["text.0"].clone())
        hidden, width = leaves["shift.in.weight"].shape
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, self.context.shape[1])
        ).double()
        named = {name.removeprefix("shift."): leaf for name, leaf in leaves.items() if "shift" in name}
        layer = {"in": "0", "out": "2"}
        self.net.load_state_dict(
            {f"{layer[name.split('.')[0]]}.{name.split('.')[1]}": leaf for name, leaf in named.items()}
        )
        parameters = [self.context, *self.net.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    def leaves(self) -> dict[str, Tensor]:
        kinds = ("in.weight", "in.bias", "out.weight", "out.bias")
        net = {f"shift.{kind}": p.detach() for kind, p in zip(kinds, self.net.parameters(), strict=True)}
        return {"text.0": self.context.detach(), **net}

    def logits(self, images: Tensor) -> Tensor:
        image_BE = F.normalize(image_features(self.clip, images, {}), dim=-1)
        rows = []
        for image in image_BE:
            text = text_features(self.clip, self.tokens_CT, {"text.0": self.context + self.net(image)})
            rows.append(self.clip.logit_scale * text @ image)
        return torch.stack(rows)

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.logits(images), labels).backward()
        self.optimizer.step()


@dataclass
class PlainMeta(Released):
    """ProMetaR's step for prompts whose tokens may be functions of other tokens.

    The gate receives the gradients with respect to the towers' tokens.
    """

    @staticmethod
    def made(leaves: Leaves) -> Leaves:
        """Return tokens as separate variables, so that a text token's gradient excludes coupled tokens."""
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

    def query_loss(self, adapted: Leaves, images: Tensor, labels: Tensor, task: Selection) -> Tensor:
        return super().query_loss(self.made(adapted), images, labels, task)

    def train(self, images: Tensor, labels: Tensor, task: Selection) -> None:
        self.direct(self.gradient(images, labels))
        support = self.gradient(images[task.support_rows], labels[task.support_rows])
        self.meta(self.query_loss(self.inner(support), images, labels, task))
