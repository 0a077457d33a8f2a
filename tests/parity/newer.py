"""Recorded trajectories of TCP, MMA, MMRL, DePT and CoPrompt, and their conversion to our runs.

A recording's `meta.settings` has the names of the official configuration. `overrides` maps them to ours.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prometar.clip.features import frozen_text_features
from prometar.clip.model import Clip
from prometar.clip.openclip import tokenize
from prometar.config.settings import Config, configure
from prometar.methods.composition import Method, build
from prometar.methods.prompts import Leaves
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts

from .golden import HERE, frozen_clip, golden_files
from .official import coupled_leaf_name, read_frozen, word_ids

Settings = dict[str, Any]


def newer_files() -> list[Path]:
    """Return all recordings in the subfolder `newer` of the golden folders."""
    return golden_files("newer/*.npz")


def _layers(numbers: list[int]) -> str:
    return ",".join(map(str, numbers))


def _tcp(meta: dict[str, Any]) -> Settings:
    settings = meta["settings"]["COOP"]
    constants = meta["constants"]
    return {
        "method": "tcp",
        "prompts.text_length": settings["N_CTX"],
        "prompts.init": "a photo of a" if settings["CTX_INIT"] else "",
        "prompts.layer": constants["class-aware prompts enter before text block (0-based)"] + 1,
        "prompts.template": meta["templates"]["student"],
        "regularizer.text_weight": constants["distillation weight"],
        "optim.eps": meta["optimizer"]["adam_eps"],
    }


def _mma(meta: dict[str, Any]) -> Settings:
    settings = meta["settings"]["MMADAPTER"]
    return {
        "method": "mma",
        "prompts.init": settings["TEXT_CTX_INIT"],
        "adapters.layers": f"{settings['ADAPTER_START']}-{settings['ADAPTER_END']}",
        "adapters.dim": settings["ADAPTER_DIM"],
        "adapters.scale": settings["ADAPTER_SCALE"],
    }


def _mmrl(meta: dict[str, Any]) -> Settings:
    settings = meta["settings"]["MMRL"]
    return {
        "method": "mmrl",
        "prompts.length": settings["N_REP_TOKENS"],
        "prompts.dim": settings["REP_DIM"],
        "prompts.layers": _layers(settings["REP_LAYERS"]),
        "logits.weight": settings["ALPHA"],
        "regularizer.text_weight": settings["REG_WEIGHT"],
        "regularizer.image_weight": settings["REG_WEIGHT"],
    }


def _dept(meta: dict[str, Any]) -> Settings:
    settings = meta["settings"]
    common = {
        "logits.weight": settings["LINEAR_PROBE"]["WEIGHT"],
        "optim.logits_lr_factor": settings["LR_EXP"],
    }
    if "MAPLE" in settings:
        maple = settings["MAPLE"]
        return common | {
            "method": "dept-maple",
            "prompts.text_length": maple["N_CTX"],
            "prompts.init": maple["CTX_INIT"],
            "prompts.text_depth": maple["PROMPT_DEPTH"],
        }
    coop = settings["COOP"]
    prompts = {"prompts.text_length": coop["N_CTX"], "prompts.init": coop["CTX_INIT"]}
    if "kgcoop" in meta["method"]:
        return common | prompts | {"method": "dept-kgcoop", "regularizer.text_weight": coop["W"]}
    return common | prompts | {"method": "dept-coop"}


def _coprompt(meta: dict[str, Any]) -> Settings:
    settings = meta["settings"]["CoPrompt"]
    constants = meta["constants"]
    return {
        "method": "coprompt",
        "prompts.text_length": settings["N_CTX"],
        "prompts.init": settings["CTX_INIT"],
        "prompts.text_depth": settings["PROMPT_DEPTH"],
        "features.reduction": constants["adapter reduction"],
        "features.text_share": constants["text adapter mix"],
        "features.image_share": constants["image adapter mix"],
        "regularizer.text_weight": meta["settings"]["W"],
        "regularizer.image_weight": meta["settings"]["W"],
    }


_CONVERT: dict[str, Callable[[dict[str, Any]], Settings]] = {
    "tcp": _tcp,
    "mma": _mma,
    "mmrl": _mmrl,
    "dept": _dept,
    "dept_kgcoop": _dept,
    "dept_maple": _dept,
    "coprompt": _coprompt,
}


def overrides(meta: dict[str, Any]) -> Settings:
    """Return our settings of a recorded run."""
    optimizer = meta["optimizer"]
    values = _CONVERT[meta["method"]](meta)
    if optimizer["name"] == "sgd":
        values["optim.momentum"] = optimizer["momentum"]
    else:
        values["optim.beta1"], values["optim.beta2"] = optimizer["adam_betas"]
    return values | {
        "optim.kind": optimizer["name"],
        "optim.lr": meta["lr"],
        "optim.weight_decay": optimizer["weight_decay"],
        "optim.warmup_epochs": optimizer["warmup_epoch"],
        "optim.warmup_lr": optimizer["warmup_cons_lr"],
        "train.epochs": meta["epochs"],
        "train.batch_size": meta["batch"],
    }


@dataclass(frozen=True)
class Newer:
    """One recorded run, in float64."""

    meta: dict[str, Any]
    arrays: dict[str, np.ndarray]
    raw_clip: Clip
    config: Config
    method: Method

    def tensor(self, key: str) -> Tensor:
        return torch.from_numpy(self.arrays[key]).double()

    def has(self, key: str) -> bool:
        return key in self.arrays

    def leaves(self, stem: str) -> Leaves:
        """Return the recorded leaves whose keys start with `stem`, by our names."""
        found = {k[len(stem) :]: self.tensor(k) for k in self.arrays if k.startswith(stem)}
        return {self.leaf_name(name): leaf for name, leaf in found.items()}

    def leaf_name(self, recorded: str) -> str:
        return leaf_name(recorded, self.meta)

    def steps(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the number (from 1), images and labels of each step."""
        for index in range(1, int(self.meta["steps"]) + 1):
            labels = torch.from_numpy(self.arrays[f"step{index}/labels"])
            yield index, self.tensor(f"step{index}/images"), labels

    @cached_property
    def clip(self) -> Clip:
        return self.raw_clip if self.method.changes_blocks else self.raw_clip.folded()

    def model(self, entry: str) -> PromptedClip:
        """Return the model of the classes in `meta[entry]`: "classnames" (training) or "new_classnames"."""
        classes = self.meta[entry]
        texts = prompt_texts(
            classes,
            self.method.prompts,
            init=self.config.prompts.init,
            template=self.meta["templates"]["student"],
        )
        is_new = entry != "classnames"
        ids = tokenize(texts)
        return build_model(self.clip, self.method, ids, self.teacher(entry), new_classes=is_new)

    def teacher(self, entry: str) -> Tensor | None:
        """Return the frozen text features of the classes in `meta[entry]`, computed by our code."""
        if not self.method.uses_frozen_text_features:
            return None
        if "class_texts" in self.meta:
            return self._drawn_texts(self.meta[entry])
        template = self.meta["templates"]["teacher"]
        return frozen_text_features(self.clip, tokenize, self.meta[entry], [template])

    def _drawn_texts(self, classes: list[str]) -> Tensor | None:
        """Return the features (N, C, E) of N texts per class. New classes have no recorded texts."""
        by_class = {name.replace("_", " "): texts for name, texts in self.meta["class_texts"].items()}
        classes = [name.replace("_", " ") for name in classes]
        if not all(name in by_class for name in classes):
            return None
        stacked = [
            frozen_text_features(self.clip, tokenize, [by_class[name][k] for name in classes], ["{}"])
            for k in range(len(by_class[classes[0]]))
        ]
        return torch.stack(stacked)

    @property
    def init_ids(self) -> Tensor:
        """Token ids of the initial words, without start and end of text."""
        return word_ids(self.config.prompts.init)


def leaf_name(recorded: str, meta: dict[str, Any]) -> str:
    """Return our name of an official parameter."""
    for find in (_adapter_leaf, _representation_leaf, _tcp_leaf, _head_leaf, _feature_leaf):
        name = find(recorded, meta)
        if name is not None:
            return name
    return coupled_leaf_name(recorded)


TOWERS = {"text_adapter": "text", "visual_adapter": "vision", "shared_adapter": "shared"}
"""Our names of the towers of MMA's adapters, by the official ones."""


def _adapter_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of MMA, such as adapter_learner.text_adapter.2.down.0.weight."""
    if not recorded.startswith("adapter_learner."):
        return None
    _, adapter, layer, *rest = recorded.split(".")
    tower = TOWERS[adapter]
    if tower == "shared":
        return f"adapters.shared.{layer}.{rest[-1]}"
    return f"adapters.{tower}.{layer}.{rest[0]}.{rest[-1]}"


def _representation_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of MMRL, such as representation_learner.compound_rep_tokens_r2vproj.0.weight."""
    if recorded == "image_encoder.proj_rep":
        return "features.projection"
    if not recorded.startswith("representation_learner."):
        return None
    _, name, *rest = recorded.split(".")
    if name == "compound_rep_tokens":
        return "shared"
    tower = "vision" if "r2v" in name else "text"
    layer = meta["settings"]["MMRL"]["REP_LAYERS"][int(rest[0])]
    return f"{tower}.{layer - 1}.{rest[1]}"


def _tcp_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    if "meta_net" not in recorded:
        return None
    _, _, linear, part = recorded.split(".")
    index = meta["constants"]["class-aware prompts enter before text block (0-based)"]
    return f"class.in.{part}" if linear == "linear1" else f"class.{index}.{part}"


def _head_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of DePT's head, such as film_lp_img.scale."""
    if recorded.startswith("linear_probe_proj."):
        return f"logits.{recorded.partition('.')[2]}"
    if not recorded.startswith("film_lp_"):
        return None
    kind, _, part = recorded.removeprefix("film_lp_").partition(".")
    if kind == "img":
        kind = "image"
    if part == "bias":
        part = "shift"
    return f"logits.{kind}.{part}"


def _feature_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of CoPrompt's adapters, such as adapter_image.fc.0.weight."""
    if not recorded.startswith(("adapter_image.", "adapter_text.")):
        return None
    adapter, _, layer, _ = recorded.split(".")
    kind = adapter.removeprefix("adapter_")
    matrix = "in" if layer == "0" else "out"
    return f"features.{kind}.{matrix}"


def _clip_path(path: Path) -> Path:
    """Return the file of the frozen CLIP of a recording that does not contain it."""
    for place in (path.with_name("clip.npz"), path.parent.parent / "methods" / "clip.npz"):
        if place.exists():
            return place
    return HERE / "methods" / "clip.npz"


@cache
def load_newer(path: Path) -> Newer:
    """Return a recording, with the frozen CLIP."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    has_clip = any(key.startswith("frozen/") for key in arrays)
    if not has_clip:
        arrays |= read_frozen(_clip_path(path))
    meta = json.loads(arrays["meta"].tobytes())
    values = overrides(meta)
    method = values.pop("method")
    config = configure(method, values)
    return Newer(meta, arrays, frozen_clip(meta, arrays, torch.float64), config, build(config))
