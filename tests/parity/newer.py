"""Recorded trajectories of TCP, MMA, MMRL, DePT and CoPrompt, and their conversion to our runs.

A recording is an .npz file. Its array `meta` is a JSON object that describes the run. The object's entry
`settings` has the names of the official configuration, which `overrides` converts to ours.
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
from prometar.clip.wording import readable
from prometar.config.settings import Config, configure
from prometar.methods.composition import Method, build
from prometar.methods.prompts import Leaves
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts

from .golden import OWN_RECORDINGS, frozen_clip, golden_files
from .official import coupled_leaf_name, read_frozen, word_ids

Settings = dict[str, Any]
"""Our settings by full name, such as "optim.lr"."""


def newer_files() -> list[Path]:
    """Return all recordings in the subfolder `newer` of the golden folders."""
    return golden_files("newer/*.npz")


TCP_BLOCK = "class-aware prompts enter before text block (0-based)"
"""Key of a constant in recordings of TCP."""


def _tcp(meta: dict[str, Any]) -> Settings:
    settings = meta["settings"]["COOP"]
    constants = meta["constants"]
    return {
        "method": "tcp",
        "prompts.text_length": settings["N_CTX"],
        "prompts.init": "a photo of a" if settings["CTX_INIT"] else "",
        # Ours is the number of the block, from 1.
        "prompts.layer": constants[TCP_BLOCK] + 1,
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
        "prompts.layers": ",".join(str(layer) for layer in settings["REP_LAYERS"]),
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


_SETTINGS_OF: dict[str, Callable[[dict[str, Any]], Settings]] = {
    "tcp": _tcp,
    "mma": _mma,
    "mmrl": _mmrl,
    "dept": _dept,
    "dept_kgcoop": _dept,
    "dept_maple": _dept,
    "coprompt": _coprompt,
}
"""Functions that return our settings of a method, given `meta`, by the method's name in `meta`."""


def overrides(meta: dict[str, Any]) -> Settings:
    """Return our settings of a recorded run. `method` is the name of our recipe."""
    optimizer = meta["optimizer"]
    settings_of_method = _SETTINGS_OF[meta["method"]]
    values = settings_of_method(meta)
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
    """One recorded run, in float64.

    Args:
        meta: Description of the run.
        arrays: Arrays of the recording by key, such as `step1/labels`.
        raw_clip: Frozen CLIP whose weights are not folded (`Clip.folded`).
        config: Our configuration of the run.
        method: Our composition of the method.
    """

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
        """Return the recorded leaves whose keys start with `stem`, such as "step1/prompt/", by our names."""
        keys = [key for key in self.arrays if key.startswith(stem)]
        return {leaf_name(key.removeprefix(stem), self.meta): self.tensor(key) for key in keys}

    def steps(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield the number (from 1), images and labels of each step."""
        for index in range(1, int(self.meta["steps"]) + 1):
            labels = torch.from_numpy(self.arrays[f"step{index}/labels"])
            yield index, self.tensor(f"step{index}/images"), labels

    @cached_property
    def clip(self) -> Clip:
        """The frozen CLIP, folded unless the method changes blocks."""
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
        return build_model(self.clip, self.method, ids, self.frozen_text(entry), new_classes=is_new)

    def frozen_text(self, entry: str) -> Tensor | None:
        """Return the frozen text features of the classes in `meta[entry]`, computed by our code.

        Return None if the method does not use them.
        """
        if not self.method.uses_frozen_text_features:
            return None
        if "class_texts" in self.meta:
            return self._features_of_class_texts(self.meta[entry])
        template = self.meta["templates"]["teacher"]
        return frozen_text_features(self.clip, tokenize, self.meta[entry], [template])

    def _features_of_class_texts(self, classes: list[str]) -> Tensor | None:
        """Return the features (N, C, E) of N texts per class. None for new classes, which have no texts."""
        texts_by_class = {readable(name): texts for name, texts in self.meta["class_texts"].items()}
        if not all(readable(name) in texts_by_class for name in classes):
            return None
        texts = [texts_by_class[readable(name)] for name in classes]
        # The first item has the first text of each class.
        texts_by_number = zip(*texts, strict=True)
        features = [frozen_text_features(self.clip, tokenize, each, ["{}"]) for each in texts_by_number]
        return torch.stack(features)

    @property
    def init_ids(self) -> Tensor:
        """Token ids of the initial words, without start and end of text."""
        return word_ids(self.config.prompts.init)


def leaf_name(recorded: str, meta: dict[str, Any]) -> str:
    """Return our name of a parameter, given its official name.

    The functions below each know one naming scheme, and return None for names of other schemes.
    """
    for name_in_scheme in (_adapter_leaf, _representation_leaf, _tcp_leaf, _head_leaf, _feature_leaf):
        name = name_in_scheme(recorded, meta)
        if name is not None:
            return name
    return coupled_leaf_name(recorded)


TOWERS = {"text_adapter": "text", "visual_adapter": "vision", "shared_adapter": "shared"}
"""Our names of the towers of MMA's adapters, by the official ones."""


def _adapter_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of MMA, such as adapter_learner.text_adapter.2.down.0.weight."""
    if not recorded.startswith("adapter_learner."):
        return None
    parts = recorded.split(".")
    tower = TOWERS[parts[1]]
    layer = parts[2]
    parameter = parts[-1]  # "weight" or "bias"
    if tower == "shared":
        return f"adapters.shared.{layer}.{parameter}"
    projection = parts[3]  # "down" or "up"
    return f"adapters.{tower}.{layer}.{projection}.{parameter}"


def _representation_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of MMRL, such as representation_learner.compound_rep_tokens_r2vproj.0.weight."""
    if recorded == "image_encoder.proj_rep":
        return "features.projection"
    if not recorded.startswith("representation_learner."):
        return None
    name = recorded.removeprefix("representation_learner.")
    if name == "compound_rep_tokens":
        return "shared"
    projections, index, parameter = name.split(".")
    tower = "vision" if "r2v" in projections else "text"
    # The official list has one projection for each of these layers, which are numbered from 1.
    layer = meta["settings"]["MMRL"]["REP_LAYERS"][int(index)]
    return f"{tower}.{layer - 1}.{parameter}"


def _tcp_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of TCP, such as prompt_learner.meta_net.linear1.weight."""
    if "meta_net" not in recorded:
        return None
    _, _, linear, parameter = recorded.split(".")
    if linear == "linear1":
        return f"class.in.{parameter}"
    return f"class.{meta['constants'][TCP_BLOCK]}.{parameter}"


def _head_leaf(recorded: str, meta: dict[str, Any]) -> str | None:
    """Leaves of DePT's head, such as film_lp_img.scale."""
    if recorded.startswith("linear_probe_proj."):
        return f"logits.{recorded.removeprefix('linear_probe_proj.')}"
    if not recorded.startswith("film_lp_"):
        return None
    kind, parameter = recorded.removeprefix("film_lp_").split(".")
    if kind == "img":
        kind = "image"
    if parameter == "bias":
        parameter = "shift"
    return f"logits.{kind}.{parameter}"


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
    beside = path.with_name("clip.npz")
    in_methods = path.parent.parent / "methods" / "clip.npz"
    for clip_path in (beside, in_methods):
        if clip_path.exists():
            return clip_path
    return OWN_RECORDINGS / "methods" / "clip.npz"


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
