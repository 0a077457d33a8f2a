"""Architecture and weights of the backbone `mini`.

Pretraining changed only a few rows of the token embedding table, so `mini.safetensors` contains only these
rows. `load_mini` generates the other rows from a fixed seed.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

_FOLDER = resources.files("prometar.embedded")
MINI_VOCABULARY: tuple[str, ...] = tuple((_FOLDER / "vocabulary.txt").read_text(encoding="utf-8").split())
"""100 nouns that `mini` was also pretrained on. None of them is a class of a rendered dataset."""

TOKEN_TABLE = "token_embedding.weight"  # name in the state dict
# Names in mini.safetensors.
ROW_IDS = "token_rows/ids"
ROW_VALUES = "token_rows/values"


def initial_token_table(vocab_size: int, width: int) -> Tensor:
    """Return the initial token table: normally distributed (std 0.02), identical on all platforms."""
    rng = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(rng.standard_normal((vocab_size, width), dtype=np.float32) * np.float32(0.02))


def mini_config() -> dict[str, Any]:
    """Return the open_clip model configuration of `mini`."""
    return json.loads((_FOLDER / "mini.json").read_text(encoding="utf-8"))


@cache
def load_mini() -> dict[str, Tensor]:
    """Return the complete state dict of `mini` in float32, with open_clip's parameter names.

    All callers share the cached tensors, so clone them before changing them.
    """
    stored = safetensors.torch.load((_FOLDER / "mini.safetensors").read_bytes())
    ids = stored.pop(ROW_IDS)
    values = stored.pop(ROW_VALUES).float()
    table = initial_token_table(mini_config()["text_cfg"]["vocab_size"], values.shape[1])
    table[ids.long()] = values
    return {name: value.float() for name, value in stored.items()} | {TOKEN_TABLE: table}
