"""Recorded trajectories of the methods' official trainers, and their conversion to our runs.

A recording contains a run of one method. The frozen CLIP is in the same file, in clip.npz beside it, or in
tests/golden/methods/clip.npz.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.features import frozen_text_features
from prometar.clip.model import Clip
from prometar.clip.openclip import tokenize
from prometar.config.settings import Config, configure
from prometar.methods.composition import Method, build
from prometar.methods.prompts import Leaves
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts

from .golden import HERE, frozen_clip, golden_folders


def official_files() -> list[Path]:
    """Return all recordings of official trainers in the golden folders and their subfolders `methods`."""
    folders = [place for folder in golden_folders() for place in (folder, folder / "methods")]
    return [path for folder in folders for path in sorted(folder.glob("*.npz")) if "official" in _meta(path)]


def _meta(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return json.loads(file["meta"].tobytes()) if "meta" in file.files else {}


@cache
def _frozen(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key.startswith("frozen/")}


def _clip_of(path: Path) -> Path:
    beside = path.with_name("clip.npz")
    return beside if beside.exists() else HERE / "methods" / "clip.npz"


@dataclass(frozen=True)
class Official:
    """One recorded run, in float64."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    clip: Clip
    config: Config
    method: Method

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key]).double()

    def has(self, key: str) -> bool:
        return key in self.arrays

    def leaves(self, stem: str) -> Leaves:
        """Return the recorded leaves whose keys start with `stem`, by our names."""
        return {leaf_name(k[len(stem) :]): self.tensor(k) for k in self.arrays if k.startswith(stem)}

    def steps(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the number (from 1), images and labels of each step."""
        for index in range(1, int(self.meta["steps"]) + 1):
            labels = torch.from_numpy(self.arrays[f"step{index}/labels"])
            yield index, self.tensor(f"step{index}/images"), labels

    def model(self, names: str) -> PromptedClip:
        """Return the model of the classes that the recording's entry `names` lists."""
        classes = self.meta[names]
        init = self.config.prompts.init
        texts = prompt_texts(classes, self.method.prompts, init=init, template=self.meta["template"])
        return build_model(self.clip.folded(), self.method, tokenize(texts), self.teacher)

    @cached_property
    def teacher(self) -> Tensor | None:
        """Frozen text features of the regularizer, computed by our code."""
        if not self.method.regularizer.uses_text:
            return None
        templates = self.method.regularizer.templates or (self.meta["template"],)
        return frozen_text_features(self.clip, tokenize, self.meta["classnames"], templates)

    @property
    def init_ids(self) -> Tensor:
        words = tokenize([self.config.prompts.init])[0]
        return words[1 : int(words.argmax())]

    @property
    def recorded_teacher(self) -> Tensor:
        return F.normalize(self.tensor("teacher_text"), dim=-1)


@cache
def load_official(path: Path) -> Official:
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    own = any(key.startswith("frozen/") for key in arrays)
    frozen = arrays if own else {**arrays, **_frozen(_clip_of(path))}
    meta = json.loads(arrays["meta"].tobytes())
    overrides = {
        **meta["overrides"],
        "optim.lr": meta["lr"],
        "optim.momentum": meta["momentum"],
        "optim.weight_decay": meta["weight_decay"],
        "train.epochs": meta["epochs"],
    }
    config = configure(meta["method"], overrides)
    return Official(meta, arrays, frozen_clip(meta, frozen, torch.float64), config, build(config))


def leaf_name(recorded: str) -> str:
    """Return our name of an official parameter.

    Example:
        >>> leaf_name("prompt_learner.compound_prompt_projections.1.bias")
        'vision.2.bias'
    """
    if "VPT" in recorded:
        layer = recorded.split("resblocks.")[-1].split(".")[0] if "resblocks" in recorded else "0"
        return f"{'vision' if recorded.startswith('image_encoder') else 'text'}.{layer}"
    _, name, *rest = recorded.split(".")
    deeper = str(int(rest[0]) + 1) if name.startswith("compound") else "0"
    tower = "vision" if "proj" in name else "text"
    return ".".join([tower, deeper, *(rest[-1:] if tower == "vision" else [])])
