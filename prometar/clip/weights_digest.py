"""What weights a backbone has, as a digest that files and unfinished runs name them by."""

import hashlib
from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from prometar.clip.architecture import OPENAI
from prometar.clip.frozen import Frozen
from prometar.clip.model import Clip, Tower
from prometar.clip.norm import EPS


def weights_digest(clip: Clip) -> str:
    """sha256 (hex) of a backbone's weights in float32, in the order of its fields, and of its shape."""
    state = hashlib.sha256()

    def add(tensor: Tensor) -> None:
        array = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
        state.update(str(array.shape).encode())
        state.update(np.ascontiguousarray(array, dtype="<f4").data)

    for field in fields(clip):
        if field.name == "image_prompts":  # how it is used, and not what it is
            continue
        value = getattr(clip, field.name)
        if isinstance(value, Tower):
            state.update(f"{value.num_heads} {value.activation}".encode())
            if value.eps != EPS:
                state.update(f" {value.eps}".encode())
            for block in value.blocks:
                for tensor in block:
                    if tensor is not None:
                        add(tensor)
        elif isinstance(value, Tensor):
            add(value)
        elif isinstance(value, Frozen):
            for name, tensor in sorted(value.tensors.items()):
                state.update(name.encode())
                add(tensor)
        elif value is not None and value != OPENAI:
            state.update(repr(value).encode())
    return state.hexdigest()
