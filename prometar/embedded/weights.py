"""The embedded backbone's configuration and weights."""

from __future__ import annotations

import json
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

EMBEDDING_STD = 0.02
"""Token embeddings that training never touched keep their seeded initial values, N(0, EMBEDDING_STD^2)."""


def initial_token_embedding(vocab_size: int, width: int) -> Tensor:
    """Initial token embeddings (vocab_size, width), the same on every machine."""
    generator = np.random.Generator(np.random.PCG64(0))
    return torch.from_numpy(generator.standard_normal((vocab_size, width), dtype=np.float32) * EMBEDDING_STD)


def load_config() -> dict[str, Any]:
    """The open_clip model configuration of `mini`."""
    return json.loads(files("prometar.embedded").joinpath("mini.json").read_text("utf-8"))


def load_mini() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(open_clip model configuration, complete float32 state dict) of `mini`."""
    config = load_config()
    with as_file(files("prometar.embedded").joinpath("mini.safetensors")) as path:
        state = {name: tensor.float() for name, tensor in load_file(path).items() if "token_rows/" not in name}
        rows = load_file(path)
    embedding = initial_token_embedding(config["text_cfg"]["vocab_size"], config["text_cfg"]["width"])
    embedding[rows["token_rows/ids"].long()] = rows["token_rows/values"].float()
    return config, state | {"token_embedding.weight": embedding}
