"""CoCoOp as its paper writes it: a net of the image shifts the context, each image has texts of its own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prometar.clip.model import Clip
from tests.parity.released import image_features, text_features


@dataclass
class PlainConditional:
    """Cross-entropy on a batch, one image after the other, minimised by SGD."""

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
