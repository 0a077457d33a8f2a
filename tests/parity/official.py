"""Recorded trajectories of CoOp, VPT, IVLP, MaPLe, KgCoOp and PromptSRC, and their conversion to our runs.

A recording is an .npz file with one run of a method's official trainer. Its array `meta` is a JSON object
that describes the run. The frozen CLIP is in the same file, in clip.npz beside it, or in
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

from .golden import OWN_RECORDINGS, frozen_clip, golden_files, independent_leaf_name


def official_files() -> list[Path]:
    """Return all recordings of official trainers in the golden folders and their subfolders `methods`."""
    paths = golden_files("*.npz") + golden_files("methods/*.npz")
    return [path for path in paths if "official" in _meta(path)]


def _meta(path: Path) -> dict[str, Any]:
    """Return the description of a recording. Empty for a file that contains only a frozen CLIP."""
    with np.load(path, allow_pickle=False) as file:
        if "meta" not in file.files:
            return {}
        return json.loads(file["meta"].tobytes())


@cache
def read_frozen(clip_path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of the frozen CLIP in the file `clip_path`. Their keys start with "frozen/"."""
    with np.load(clip_path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files if key.startswith("frozen/")}


def _clip_path(path: Path) -> Path:
    """Return the file of the frozen CLIP of a recording that does not contain it."""
    beside = path.with_name("clip.npz")
    if beside.exists():
        return beside
    return OWN_RECORDINGS / "methods" / "clip.npz"


@dataclass(frozen=True)
class Official:
    """One recorded run, in float64.

    Args:
        meta: Description of the run.
        arrays: Arrays of the recording by key, such as `step1/labels`.
        clip: Frozen CLIP whose weights are not folded (`Clip.folded`).
        config: Our configuration of the run.
        method: Our composition of the method.
    """

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
        """Return the recorded leaves whose keys start with `stem`, such as "step1/prompt/", by our names."""
        keys = [key for key in self.arrays if key.startswith(stem)]
        return {leaf_name(key.removeprefix(stem)): self.tensor(key) for key in keys}

    def steps(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the number (from 1), images and labels of each step."""
        for index in range(1, int(self.meta["steps"]) + 1):
            labels = torch.from_numpy(self.arrays[f"step{index}/labels"])
            yield index, self.tensor(f"step{index}/images"), labels

    def model(self, entry: str) -> PromptedClip:
        """Return the model of the classes in `meta[entry]`.

        The frozen text features are those of the training classes, even in a model of new classes. Only
        training uses them, and a model of new classes is only evaluated.

        Args:
            entry: "classnames" (training classes) or "new_classnames".
        """
        classes = self.meta[entry]
        init = self.config.prompts.init
        texts = prompt_texts(classes, self.method.prompts, init=init, template=self.meta["template"])
        return build_model(self.clip.folded(), self.method, tokenize(texts), self.frozen_text)

    @cached_property
    def frozen_text(self) -> Tensor | None:
        """Frozen text features of the training classes for the regularizer, computed by our code.

        None if the regularizer does not use them.
        """
        if not self.method.regularizer.uses_text:
            return None
        templates = self.method.regularizer.templates or (self.meta["template"],)
        return frozen_text_features(self.clip, tokenize, self.meta["classnames"], templates)

    @property
    def init_ids(self) -> Tensor:
        """Token ids of the initial words, without start and end of text."""
        return word_ids(self.config.prompts.init)

    @property
    def recorded_frozen_text(self) -> Tensor:
        """The same features, computed by the official code and normalized."""
        return F.normalize(self.tensor("teacher_text"), dim=-1)


def word_ids(text: str) -> Tensor:
    """Return the token ids of a text, without start and end of text."""
    ids = tokenize([text])[0]
    # The end token has the highest id. Zeros follow it.
    end = int(ids.argmax())
    return ids[1:end]


@cache
def load_official(path: Path) -> Official:
    """Return a recording, with the frozen CLIP."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    has_clip = any(key.startswith("frozen/") for key in arrays)
    if not has_clip:
        arrays |= read_frozen(_clip_path(path))
    meta = json.loads(arrays["meta"].tobytes())
    overrides = {
        **meta["overrides"],
        "optim.lr": meta["lr"],
        "optim.momentum": meta["momentum"],
        "optim.weight_decay": meta["weight_decay"],
        "train.epochs": meta["epochs"],
    }
    config = configure(meta["method"], overrides)
    return Official(meta, arrays, frozen_clip(meta, arrays, torch.float64), config, build(config))


def leaf_name(recorded: str) -> str:
    """Return our name of a parameter, given its official name.

    "VPT" in a name means that no projection computes the prompt (unlike MaPLe's image prompts).

    Example:
        >>> leaf_name("image_encoder.transformer.resblocks.1.VPT_shallow")
        'vision.1'
    """
    if "VPT" in recorded:
        return independent_leaf_name(recorded)
    return coupled_leaf_name(recorded)


def coupled_leaf_name(recorded: str) -> str:
    """Return our name of a parameter of MaPLe's prompt learner, given its official name.

    Prompt learners of other methods use some of these names, too. MaPLe's projections map text prompts to
    image prompts, so their leaves belong to the vision tower. Lists of compound prompts and of their
    projections start at layer 1.

    Example:
        >>> coupled_leaf_name("prompt_learner.ctx")
        'text.0'
        >>> coupled_leaf_name("prompt_learner.proj.weight")
        'vision.0.weight'
        >>> coupled_leaf_name("prompt_learner.compound_prompts_text.0")
        'text.1'
        >>> coupled_leaf_name("prompt_learner.compound_prompt_projections.1.bias")
        'vision.2.bias'
    """
    parts = recorded.split(".")
    name = parts[1]
    layer = 0
    if name.startswith("compound"):
        index_in_list = int(parts[2])
        layer = index_in_list + 1
    if "proj" in name:
        weight_or_bias = parts[-1]
        return f"vision.{layer}.{weight_or_bias}"
    return f"text.{layer}"
