"""Custom components, as users write them in their own files."""

from pathlib import Path

PARTS = '''
from dataclasses import dataclass

import torch
import torch.nn.functional as F


def huber(a, b):
    return F.huber_loss(a, b, reduction="none").mean(dim=-1)


def total(a, b):
    return (a - b).abs().mean()


def broken(a, b):
    return a @ b


@dataclass(frozen=True)
class Huber:
    delta: float = 1.0

    def __call__(self, a, b):
        return F.huber_loss(a, b, reduction="none", delta=self.delta).mean(dim=-1)


@dataclass(frozen=True)
class Spread:
    """Loss term: mean similarity of the class features."""

    weight: float
    name: str = "spread"
    uses_text: bool = False
    uses_images: bool = False

    def __call__(self, inputs):
        return self.weight * (inputs.text_CE @ inputs.text_CE.T).mean()


@dataclass(frozen=True)
class Mute:
    pass


@dataclass(frozen=True)
class Wide:
    """Prompts of a width that no backbone has."""

    num_context: int = 2
    templates: tuple[str, ...] = ()
    conditional: bool = False

    def initialize(self, clip, init_ids, generator):
        return {"text.0": torch.zeros(2, 3)}

    def tokens(self, leaves):
        return leaves

    def condition_tokens(self, tokens, frozen_BE):
        return tokens
'''


def write_parts(folder: Path, name: str) -> Path:
    """Write the components to FOLDER/NAME.py. Return its path."""
    path = folder / f"{name}.py"
    path.write_text(PARTS)
    return path
