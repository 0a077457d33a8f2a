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
_VOCABULARY_FILE = _FOLDER / "vocabulary.txt"
MINI_VOCABULARY: tuple[str, ...] = tuple(_VOCABULARY_FILE.read_text(encoding="utf-8").split())
"""100 nouns that `mini` was also pretrained on. None of them is a class of a rendered dataset."""

TOKEN_TABLE = "token_embedding.weight"
"""Name of the token table in the state dict."""
ROW_IDS = "token_rows/ids"
"""Name of the numbers of the changed rows in mini.safetensors."""
ROW_VALUES = "token_rows/values"
"""Name of the values of the changed rows in mini.safetensors."""


def initial_token_table(vocab_size: int, width: int) -> Tensor:
    """Return the token table (vocab_size, width) before pretraining, which is identical on all platforms.

    Its values are normally distributed with a standard deviation of 0.02.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    values = rng.standard_normal((vocab_size, width), dtype=np.float32)
    return torch.from_numpy(values * np.float32(0.02))


def mini_config() -> dict[str, Any]:
    """Return the open_clip model configuration of `mini`."""
    return json.loads((_FOLDER / "mini.json").read_text(encoding="utf-8"))


@cache
def load_mini() -> dict[str, Tensor]:
    """Return the complete state dict of `mini` in float32, with open_clip's parameter names.

    All callers share the cached tensors, so clone them before changing them.
    """
    stored = safetensors.torch.load((_FOLDER / "mini.safetensors").read_bytes())
    ids = stored.pop(ROW_IDS).long()
    values = stored.pop(ROW_VALUES).float()
    vocab_size = mini_config()["text_cfg"]["vocab_size"]
    table = initial_token_table(vocab_size, values.shape[1])
    table[ids] = values
    state = {name: value.float() for name, value in stored.items()}
    state[TOKEN_TABLE] = table
    return state
