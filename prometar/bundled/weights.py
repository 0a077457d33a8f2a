"""The weights of `mini` that the package carries.

Most of the token table is never trained: `mini.safetensors` holds the rows that training touched
(`token_rows/ids`, `token_rows/values`); all other rows are seeded initial values, made anew on loading.
"""

import json
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

_FILES = resources.files("prometar.bundled")
MINI_VOCABULARY: tuple[str, ...] = tuple((_FILES / "foreign.txt").read_text(encoding="utf-8").split())
"""A hundred nouns that `mini` has learned, and that name nothing in the embedded suite."""

TOKEN_TABLE = "token_embedding.weight"
ROW_IDS, ROW_VALUES = "token_rows/ids", "token_rows/values"


def initial_token_table(vocabulary: int, width: int) -> Tensor:
    """(vocabulary, width) float32 start of the token table: N(0, 0.02) from PCG64(0), the same everywhere."""
    rng = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(rng.standard_normal((vocabulary, width), dtype=np.float32) * np.float32(0.02))


def mini_config() -> dict[str, Any]:
    """The open_clip model config of `mini`."""
    return json.loads((_FILES / "mini.json").read_text(encoding="utf-8"))


@cache
def load_mini() -> dict[str, Tensor]:
    """Return the full float32 state dict of `mini` (open_clip's names; fits strictly), stored as float16.

    It takes a quarter of a second the first time. Later calls return the same tensors: write into copies.
    """
    stored = safetensors.torch.load((_FILES / "mini.safetensors").read_bytes())
    ids, values = stored.pop(ROW_IDS), stored.pop(ROW_VALUES).float()
    table = initial_token_table(mini_config()["text_cfg"]["vocab_size"], values.shape[1])
    table[ids.long()] = values
    return {name: value.float() for name, value in stored.items()} | {TOKEN_TABLE: table}
