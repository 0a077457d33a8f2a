"""Recorded trajectories of the published code, and their conversion to a model, a method and batches."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.model import Clip
from prometar.clip.openclip import clip_architecture, tokenize
from prometar.clip.weights import from_state_dict
from prometar.config.settings import Config
from prometar.methods.composition import Method, build
from prometar.methods.task_augmentations import Mix
from prometar.step.meta_batch import Selection, select
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates

HERE = Path(__file__).resolve().parent.parent / "golden"


def golden_folders() -> list[Path]:
    """Return tests/golden and the folder in PROMETAR_GOLDEN, if set."""
    folders = [HERE]
    added = os.environ.get("PROMETAR_GOLDEN")
    if added:
        folders.append(Path(added))
    return folders


def golden_files(pattern: str) -> list[Path]:
    """Return the files in `golden_folders` that match a pattern, such as "methods/*.npz"."""
    paths: list[Path] = []
    for folder in golden_folders():
        paths += sorted(folder.glob(pattern))
    return paths


@dataclass(frozen=True)
class Golden:
    """One recorded run in a given precision."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    dtype: torch.dtype
    raw: Clip
    model: PromptedClip
    method: Method
    rates: Rates

    @property
    def start(self) -> State:
        return State.start(self.prompts(0), self.gate(0))

    def prompts(self, step: int) -> dict[str, Tensor]:
        """Return the prompts after a step, by our names. Step 0: the initial prompts."""
        recorded = self._recorded(f"step{step}/prompt/")
        return {independent_leaf_name(name): tensor for name, tensor in recorded.items()}

    def gate(self, step: int) -> dict[str, Tensor]:
        """Return the gate after a step, by our names. Step 0: the initial gate."""
        recorded = self._recorded(f"step{step}/gate/")
        return {_gate_name(name): tensor for name, tensor in recorded.items()}

    def _recorded(self, stem: str) -> dict[str, Tensor]:
        """Return the tensors whose keys start with `stem`, by the rest of the key."""
        keys = [key for key in self.arrays if key.startswith(stem)]
        return {key.removeprefix(stem): self.tensor(key) for key in keys}

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key]).to(self.dtype)

    def steps(self) -> Iterator[tuple[int, Tensor, Tensor, Selection | None]]:
        """Yield the number, images, labels and meta task of each step."""
        for index in range(1, int(self.meta["steps"]) + 1):
            key = f"step{index}"
            labels = torch.from_numpy(self.arrays[f"{key}/labels"])
            task = None
            if f"{key}/query_label" in self.arrays:
                mix = Mix(
                    lam=torch.from_numpy(self.arrays[f"{key}/lam"]),
                    partner=torch.from_numpy(self.arrays[f"{key}/mix"]),
                )
                is_query = labels == int(self.arrays[f"{key}/query_label"])
                task = select(is_query, mix, mixes_pixels=False, dtype=self.dtype)
            yield index, self.tensor(f"{key}/images"), labels, task


def load(path: Path, dtype: torch.dtype) -> Golden:
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(arrays["meta"].tobytes())
    method = build(_config(meta))
    assert method.prompts.num_context == meta["n_ctx_text"]
    clip = frozen_clip(meta, arrays, dtype)
    teacher = F.normalize(torch.from_numpy(arrays["teacher_text"]).to(dtype), dim=-1)
    texts = prompt_texts(meta["classnames"], method.prompts, init=meta["ctx_init"], template="{}")
    model = build_model(clip.folded(), method, tokenize(texts), teacher)
    rates = Rates(meta["prompt_lr"], meta["gate_lr"])
    return Golden(meta, arrays, dtype, clip, model, method, rates)


def _config(meta: dict[str, Any]) -> Config:
    return Config().override(
        {
            "prompts.text_length": meta["n_ctx_text"],
            "prompts.text_depth": meta["depth_text"],
            "prompts.vision_length": meta["n_ctx_vision"],
            "prompts.vision_depth": meta["depth_vision"],
            "regularizer.text_weight": meta["text_weight"],
            "regularizer.image_weight": meta["image_weight"],
            "modulator.reduction": meta["gate_reduction"],
            "inner.lr": meta["inner_lr"],
            "optim.momentum": meta["momentum"],
            "optim.weight_decay": meta["weight_decay"],
            "inner.outer_weight": meta["outer_weight"],
        }
    )


def frozen_clip(meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray], dtype: torch.dtype) -> Clip:
    """Return the recorded CLIP, which contains only the token embeddings that the run uses."""
    arch = meta["architecture"]
    stem = "frozen/"
    state = {k[len(stem) :]: torch.from_numpy(v).to(dtype) for k, v in arrays.items() if k.startswith(stem)}
    rows = torch.from_numpy(arrays["token_rows/values"]).to(dtype)
    embedding = torch.zeros(arch["vocab_size"], rows.shape[1], dtype=dtype)
    embedding[torch.from_numpy(arrays["token_rows/ids"])] = rows
    return from_state_dict(state | {"token_embedding.weight": embedding}, clip_architecture(_described(arch)))


def _described(arch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture in open_clip's format. Heads have width 64."""
    text = {"width": arch["transformer_width"], "layers": arch["transformer_layers"]}
    vision = {"width": arch["vision_width"], "layers": arch["vision_layers"]}
    return {
        "embed_dim": arch["embed_dim"],
        "quick_gelu": True,
        "text_cfg": text | {"heads": text["width"] // 64},
        "vision_cfg": vision
        | {"image_size": arch["image_resolution"], "patch_size": arch["vision_patch_size"]},
    }


def independent_leaf_name(recorded: str) -> str:
    """Return our name of a prompt that no projection computes.

    Example:
        >>> independent_leaf_name("prompt_learner.ctx")
        'text.0'
        >>> independent_leaf_name("image_encoder.VPT")
        'vision.0'
        >>> independent_leaf_name("text_encoder.transformer.resblocks.1.VPT_shallow")
        'text.1'
    """
    tower = "vision" if recorded.startswith("image_encoder") else "text"
    layer = "0"
    if "resblocks." in recorded:
        after = recorded.partition("resblocks.")[2]
        layer = after.split(".")[0]
    return f"{tower}.{layer}"


GATE_MATRICES = ("in", "out")
"""Our names of a gate's two matrices, by their index in the recorded network."""


def _gate_name(recorded: str) -> str:
    """Return our name of a matrix of a gate.

    Example:
        >>> _gate_name("linear_vision_gamma.1.0.weight")
        'vision.1.in'
    """
    net, layer, index, _ = recorded.split(".")
    tower = "vision" if "vision" in net else "text"
    return f"{tower}.{layer}.{GATE_MATRICES[int(index)]}"
