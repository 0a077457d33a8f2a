"""Plain implementations of methods, close to their papers.

They use modules, one loss, torch.optim.SGD and whole towers. Each starts from given leaves, so that tests can
compare the composed method with it step by step.
"""

from dataclasses import dataclass
from typing import ClassVar

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
        clip: Frozen CLIP.
        tokens_CT: Token ids of the class texts.
        frozen_text_CE: Frozen text features for the regularizer.
        coupled: True if nn.Linear layers compute the vision tower's tokens from the text tower's.
    """

    clip: Clip
    tokens_CT: Tensor
    frozen_text_CE: Tensor
    coupled: bool

    def start(self, leaves: Leaves, lr: float) -> None:
        """Start training from initial values of the learned tensors."""
        self.tokens = {name: nn.Parameter(leaf.clone()) for name, leaf in leaves.items() if leaf.ndim == 2}
        self.maps: dict[str, nn.Linear] = {}
        if self.coupled:
            weight_names = [name for name in self.tokens if name.endswith("weight")]
            for name in weight_names:
                weight = self.tokens.pop(name)
                bias = nn.Parameter(leaves[name.replace("weight", "bias")].clone())
                linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
                linear.weight = weight
                linear.bias = bias
                self.maps[name.removesuffix(".weight")] = linear
        self.parameters: list[nn.Parameter] = list(self.tokens.values())
        for linear in self.maps.values():
            self.parameters += linear.parameters()
        self.optimizer = torch.optim.SGD(self.parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    def leaves(self) -> dict[str, Tensor]:
        """Return the learned tensors under the names of the composed method."""
        leaves = {name: token.detach() for name, token in self.tokens.items()}
        for name, linear in self.maps.items():
            leaves[f"{name}.weight"] = linear.weight.detach()
            leaves[f"{name}.bias"] = linear.bias.detach()
        return leaves

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return normalized text features, image features, and frozen image features."""
        prompts: dict[str, Tensor] = dict(self.tokens)
        for name, linear in self.maps.items():
            text_tokens = self.tokens[name.replace("vision", "text")]
            prompts[name] = linear(text_tokens)
        text = text_features(self.clip, self.tokens_CT, prompts)
        image = F.normalize(image_features(self.clip, images, prompts), dim=-1)
        with torch.no_grad():
            frozen = F.normalize(image_features(self.clip, images, {}), dim=-1)
        return text, image, frozen

    def step(self, method: str, images: Tensor, labels: Tensor) -> None:
        """Train on a batch with the loss of a method: its regularizer, or only the cross-entropy."""
        text, image, frozen_image = self.features(images)
        logits = self.clip.logit_scale * image @ text.T
        frozen_logits = self.clip.logit_scale * frozen_image @ self.frozen_text_CE.T
        loss = F.cross_entropy(logits, labels)

        if method == "kgcoop":
            loss = loss + 8 * (1 - F.cosine_similarity(text, self.frozen_text_CE).mean())

        if method == "promptsrc":
            divergence = F.kl_div(
                logits.log_softmax(1), frozen_logits.log_softmax(1), reduction="sum", log_target=True
            )
            loss = loss + divergence / logits.numel()
            loss = loss + 25 * F.l1_loss(text, self.frozen_text_CE) + 10 * F.l1_loss(image, frozen_image)

        # ProGrad removes from each gradient what conflicts with the direction of general knowledge.
        general_directions: dict[nn.Parameter, Tensor | None] = {}
        if method == "prograd":
            self.optimizer.zero_grad()
            distillation = -(frozen_logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
            distillation.backward(retain_graph=True)
            general_directions = {parameter: parameter.grad for parameter in self.parameters}

        self.optimizer.zero_grad()
        loss.backward()
        for parameter, direction in general_directions.items():
            if direction is not None:
                parameter.grad = without_conflict(parameter.grad, direction)
        self.optimizer.step()


def without_conflict(gradient: Tensor | None, direction: Tensor) -> Tensor:
    """Return the gradient without its component along `direction` if they conflict."""
    assert gradient is not None
    unit = direction / direction.norm()
    along = torch.dot(gradient.flatten(), unit.flatten())
    if along < 0:
        return gradient - along * unit
    return gradient


@dataclass
class PlainConditional:
    """CoCoOp: a network shifts the context by a function of the image's feature.

    So each image has its own text features, which are computed image by image. SGD minimizes the
    cross-entropy of the batch.

    Args:
        clip: Frozen CLIP.
        tokens_CT: Token ids of the class texts.
    """

    clip: Clip
    tokens_CT: Tensor
    _NETWORK: ClassVar[dict[str, str]] = {
        "shift.in.weight": "0.weight",
        "shift.in.bias": "0.bias",
        "shift.out.weight": "2.weight",
        "shift.out.bias": "2.bias",
    }
    """Names of the parameters of `net`, by the names of the leaves."""

    def start(self, leaves: dict[str, Tensor], lr: float) -> None:
        """Start training from initial values of the learned tensors."""
        self.context = nn.Parameter(leaves["text.0"].clone())
        hidden, width = leaves["shift.in.weight"].shape
        self.net = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, self.context.shape[1])
        ).double()
        state = {parameter: leaves[leaf] for leaf, parameter in self._NETWORK.items()}
        self.net.load_state_dict(state)
        parameters = [self.context, *self.net.parameters()]
        self.optimizer = torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=5e-4)

    def leaves(self) -> dict[str, Tensor]:
        """Return the learned tensors under the names of the composed method."""
        leaves = {"text.0": self.context.detach()}
        for leaf, parameter in self._NETWORK.items():
            leaves[leaf] = self.net.get_parameter(parameter).detach()
        return leaves

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) of images."""
        image_BE = F.normalize(image_features(self.clip, images, {}), dim=-1)
        rows = []
        for image in image_BE:
            context = self.context + self.net(image)
            text = text_features(self.clip, self.tokens_CT, {"text.0": context})
            rows.append(self.clip.logit_scale * text @ image)
        return torch.stack(rows)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch."""
        self.optimizer.zero_grad()
        F.cross_entropy(self.logits(images), labels).backward()
        self.optimizer.step()


@dataclass
class PlainMeta(Released):
    """Step of ProMetaR for prompts whose vision tokens can be functions of text tokens.

    The gate receives the gradients with respect to the tokens of the towers.
    """

    @staticmethod
    def made(leaves: Leaves) -> Leaves:
        """Return the tokens of both towers as separate variables.

        So the gradient of a text token does not include that of the vision tokens computed from it.
        """
        tokens = {name: leaf.view_as(leaf) for name, leaf in leaves.items() if name.count(".") == 1}
        weight_names = [name for name in leaves if name.endswith(".weight")]
        for name in weight_names:
            layer = name.removesuffix(".weight")
            text = leaves[layer.replace("vision", "text")]
            tokens[layer] = F.linear(text, leaves[name], leaves[f"{layer}.bias"])
        return tokens

    def gradient(self, images: Tensor, labels: Tensor) -> Leaves:
        """Return the gated gradient with respect to the leaves."""
        tokens = self.made(self.prompts)
        text = text_features(self.clip, self.tokens, tokens)
        image = F.normalize(image_features(self.clip, images, tokens), dim=-1)
        frozen = F.normalize(image_features(self.clip, images, {}), dim=-1)

        # Both losses, and their gradients with respect to the tokens of the towers.
        task = F.cross_entropy(self.clip.logit_scale * image @ text.T, labels)
        regularization = self.text_weight * F.l1_loss(text, self.teacher)
        regularization = regularization + self.image_weight * F.l1_loss(image, frozen)
        options = {"create_graph": True, "materialize_grads": True}
        variables = list(tokens.values())
        task_gradients = torch.autograd.grad(task, variables, **options)
        regularizer_gradients = torch.autograd.grad(regularization, variables, **options)

        # The gate combines them. The chain rule leads from the tokens to the leaves.
        gated = []
        for name, of_task, of_regularizer in zip(tokens, task_gradients, regularizer_gradients, strict=True):
            gated.append(self.gated(name, of_task, of_regularizer))
        gradients = torch.autograd.grad(variables, list(self.prompts.values()), gated, **options)
        return dict(zip(self.prompts, gradients, strict=True))

    def query_loss(self, adapted: Leaves, images: Tensor, labels: Tensor, selection: Selection) -> Tensor:
        """Return the loss of the query images with adapted leaves."""
        return super().query_loss(self.made(adapted), images, labels, selection)

    def train(self, images: Tensor, labels: Tensor, selection: Selection) -> None:
        """Train on a batch: the direct update, then the meta update."""
        self.direct(self.gradient(images, labels))
        support_images = images[selection.support_rows]
        support_gradient = self.gradient(support_images, labels[selection.support_rows])
        adapted = self.inner(support_gradient)
        self.meta(self.query_loss(adapted, images, labels, selection))
