"""Weights from local files: .safetensors, or .pt as a state dict or OpenAI's TorchScript archive."""

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prometar.backbone.torchscript import is_torchscript, read_torchscript
from prometar.errors import UserError, first_line
from prometar.io.files import size_of


@dataclass(frozen=True)
class WeightsFile:
    """Tensors by name, and what the file says of itself (activation, heads) where it does."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def read_weights(path: Path) -> WeightsFile:
    """Read weights. No code of a file is run, neither a pickle's nor that in OpenAI's TorchScript archives.

    Raises:
        UserError: no such file, or not a file of tensors.
    """
    if size_of(path) is None:
        raise UserError(
            f"no weights file {path}: pass --pretrained with an existing .pt or .safetensors file"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if is_torchscript(path):
        return _read_torchscript(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of, it also refuses
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} is damaged, or holds more than tensors: nothing of it is run; save its state dict alone"
        ) from None
    except Exception as error:  # over a damaged pickle, its reader raises whatever it stumbles on
        raise UserError(f"{path} is not a plain file of tensors: {first_line(error)}") from None
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UserError(f"{path} holds no state dict: expected tensors by name")
    return WeightsFile({str(k).removeprefix("module."): v for k, v in loaded.items()}, {})


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.offset_keys()}
            return WeightsFile(tensors, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a safetensors file: {first_line(error)}") from None


def _read_torchscript(path: Path) -> WeightsFile:
    """OpenAI's own release format; its models use QuickGELU and heads of width 64."""
    tensors = read_torchscript(path)
    for key in ("input_resolution", "context_length", "vocab_size"):
        tensors.pop(key, None)
    metadata = {"activation": "quick_gelu"}
    for tower, name in (("text", "positional_embedding"), ("vision", "visual.positional_embedding")):
        if name in tensors and tensors[name].ndim == 2:  # a ResNet has none there
            metadata[f"{tower}_heads"] = str(tensors[name].shape[1] // 64)
    return WeightsFile(tensors, metadata)
