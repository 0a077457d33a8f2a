"""Recorded trajectories of ProMetaR's published code, and their conversion to a model, a method and batches.

A recording is an .npz file. Its array `meta` is a JSON object that describes the run. The other arrays
contain the frozen CLIP and, for each step, the batch, the losses and the updated tensors.
"""

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

OWN_RECORDINGS = Path(__file__).resolve().parent.parent / "golden"
"""The folder tests/golden, which contains the project's own recordings."""


def golden_folders() -> list[Path]:
    """Return tests/golden, and the folder that the environment variable PROMETAR_GOLDEN names, if set."""
    folders = [OWN_RECORDINGS]
    more_recordings = os.environ.get("PROMETAR_GOLDEN")
    if more_recordings:
        folders.append(Path(more_recordings))
    return folders


def golden_files(pattern: str) -> list[Path]:
    """Return the files in `golden_folders` that match a pattern, such as "methods/*.npz"."""
    paths: list[Path] = []
    for folder in golden_folders():
        paths += sorted(folder.glob(pattern))
    return paths


@dataclass(frozen=True)
class Golden:
    """One recorded run in a given precision.

    Args:
        meta: Description of the run.
        arrays: Arrays of the recording by key, such as `step1/labels`.
        dtype: Precision to which `tensor` and `steps` convert the arrays.
        raw_clip: Frozen CLIP whose weights are not folded (`Clip.folded`).
        model: Model of the recorded classes, with folded weights.
        method: Our composition of ProMetaR, with the settings of the run.
        rates: Learning rates, the same in all steps.
    """

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    dtype: torch.dtype
    raw_clip: Clip
    model: PromptedClip
    method: Method
    rates: Rates

    @property
    def start(self) -> State:
        """State before the first step."""
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
        """Yield the number (from 1), images, labels and meta task of each step.

        The meta task is None if the batch has only one class.
        """
        for index in range(1, int(self.meta["steps"]) + 1):
            key = f"step{index}"
            labels = torch.from_numpy(self.arrays[f"{key}/labels"])
            selection = None
            if f"{key}/query_label" in self.arrays:
                mix = Mix(
                    lam=torch.from_numpy(self.arrays[f"{key}/lam"]),
                    partner=torch.from_numpy(self.arrays[f"{key}/mix"]),
                )
                is_query = labels == int(self.arrays[f"{key}/query_label"])
                selection = select(is_query, mix, mixes_pixels=False, dtype=self.dtype)
            yield index, self.tensor(f"{key}/images"), labels, selection


def load(path: Path, dtype: torch.dtype) -> Golden:
    """Read a recording. The precision of its tensors and of the model is `dtype`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(arrays["meta"].tobytes())
    method = build(_config(meta))
    # Fails if a setting of the recorded run has another name in `meta` than `_config` expects.
    assert method.prompts.num_context == meta["n_ctx_text"]
    clip = frozen_clip(meta, arrays, dtype)
    frozen_text_CE = F.normalize(torch.from_numpy(arrays["teacher_text"]).to(dtype), dim=-1)
    texts = prompt_texts(meta["classnames"], method.prompts, init=meta["ctx_init"], template="{}")
    model = build_model(clip.folded(), method, tokenize(texts), frozen_text_CE)
    rates = Rates(lr=meta["prompt_lr"], gate_lr=meta["gate_lr"])
    return Golden(meta, arrays, dtype, clip, model, method, rates)


def _config(meta: dict[str, Any]) -> Config:
    """Return our settings of a recorded run."""
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
    """Return the recorded CLIP.

    A recording contains only the token embeddings that the run uses. The other embeddings are zeros here.
    """
    architecture = meta["architecture"]
    state = {}
    for key, array in arrays.items():
        if key.startswith("frozen/"):
            state[key.removeprefix("frozen/")] = torch.from_numpy(array).to(dtype)
    used_embeddings = torch.from_numpy(arrays["token_rows/values"]).to(dtype)
    embedding = torch.zeros(architecture["vocab_size"], used_embeddings.shape[1], dtype=dtype)
    embedding[torch.from_numpy(arrays["token_rows/ids"])] = used_embeddings
    state["token_embedding.weight"] = embedding
    return from_state_dict(state, clip_architecture(_open_clip_config(architecture)))


HEAD_WIDTH = 64
"""Width of an attention head in all recordings, as in OpenAI's models."""


def _open_clip_config(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a recorded architecture to a model configuration of open_clip."""
    return {
        "embed_dim": architecture["embed_dim"],
        "quick_gelu": True,
        "text_cfg": {
            "width": architecture["transformer_width"],
            "layers": architecture["transformer_layers"],
            "heads": architecture["transformer_width"] // HEAD_WIDTH,
        },
        "vision_cfg": {
            "width": architecture["vision_width"],
            "layers": architecture["vision_layers"],
            "head_width": HEAD_WIDTH,
            "image_size": architecture["image_resolution"],
            "patch_size": architecture["vision_patch_size"],
        },
    }


def independent_leaf_name(recorded: str) -> str:
    """Return our name of a learned prompt, given its name in the published code.

    Not for MaPLe, whose image prompts are projections of its text prompts (`official.coupled_leaf_name`).

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
        # Such as "1.VPT_shallow". The prompts of layer 0 have names without a number.
        layer_and_name = recorded.partition("resblocks.")[2]
        layer = layer_and_name.split(".")[0]
    return f"{tower}.{layer}"


GATE_MATRICES = ("in", "out")
"""Our names of a gate's two matrices. The published code numbers them 0 and 1."""


def _gate_name(recorded: str) -> str:
    """Return our name of a matrix of a gate, given its name in the published code.

    Example:
        >>> _gate_name("linear_vision_gamma.1.0.weight")
        'vision.1.in'
    """
    network, layer, matrix, _ = recorded.split(".")
    tower = "vision" if "vision" in network else "text"
    return f"{tower}.{layer}.{GATE_MATRICES[int(matrix)]}"
