"""Backbones by name: open_clip's configurations, pretrained weights, tokenizers and templates.

Importing open_clip takes three seconds, for image models that are not used here, so only named models do it.
The tokenizer and the constants, which every run needs, are read from modules of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from prometar.bundled.weights import MINI_VOCABULARY, load_mini, mini_config
from prometar.clip.architecture import (
    Architecture,
    ModelConfig,
    clip_architecture,
    is_siglip,
    siglip_architecture,
)
from prometar.clip.features import Tokenize
from prometar.clip.model import Clip
from prometar.clip.weights import from_state_dict, read_weights, require_tensors, weights_digest
from prometar.errors import UserError
from prometar.io.files import file_size
from prometar.io.hub import download_errors, suppress_logs


def _open_clip() -> ModuleType:
    import open_clip

    return open_clip


@cache
def _module(name: str) -> ModuleType:
    """Import a module of open_clip that uses no other, without the package around it."""
    package: Any = find_spec("open_clip")
    spec: Any = spec_from_file_location(f"open_clip_{name}", Path(package.origin).with_name(f"{name}.py"))
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEMPLATES: tuple[str, ...] = tuple(
    template("{}") for template in _module("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES[:60]
)
"""The 60 templates of the frozen text features, with "{}" for the class name."""

FOREIGN_NAMES: tuple[str, ...] = tuple(_module("zero_shot_metadata").IMAGENET_CLASSNAMES[::10])
"""A hundred out-of-domain class names, which prompts were not trained on."""

OPENAI_MEAN = _module("constants").OPENAI_DATASET_MEAN
OPENAI_STD = _module("constants").OPENAI_DATASET_STD


def tokenize(texts: Sequence[str], context_length: int = 77) -> Tensor:
    """Return CLIP's token ids (N, context length): SOS, text, EOT (the largest id), zeros."""
    return _module("tokenizer").tokenize(list(texts), context_length)


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP with its tokenizer and the mean and standard deviation of its images' channels.

    vocabulary: Names of things that it knows, for `prometar.training.drift`.
    """

    name: str
    clip: Clip
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    vocabulary: tuple[str, ...] = FOREIGN_NAMES
    tokenize: Tokenize = tokenize

    def words(self, text: str) -> Tensor:
        """Return the ids of a text's own tokens, without those before and after every text."""
        start = self.clip.num_start
        ids, empty = self.tokenize([text])[0], self.tokenize([""])[0]
        if self.clip.causal:
            return ids[start : ids.argmax()]
        ends = torch.isin(ids[start:], empty[start:])
        return ids[start : start + int(ends.int().argmax())]

    def normalise(self, images_BHW3: Tensor) -> Tensor:
        """Convert uint8 images to (B, 3, H, W) in the backbone's precision, on its device."""
        # Rounded once, at the end: pixels are no coarser than the precision makes them.
        images = images_BHW3.to(self.clip.device).to(self.clip.working_dtype).permute(0, 3, 1, 2) / 255
        mean, std = self._constants
        return ((images - mean) / std).to(self.clip.dtype)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the weights. It takes a second for ViT-B/16, once."""
        return weights_digest(self.clip)

    @cached_property
    def _constants(self) -> Tensor:
        """Mean and standard deviation (2, 3, 1, 1) on the images' device."""
        both = torch.tensor([self.mean, self.std], dtype=self.clip.working_dtype, device=self.clip.device)
        return both[..., None, None]


def tokenizer_of(name: str) -> Tokenize:
    """Return a model's tokenizer; SigLIP's need `transformers`, and a network the first time.

    Raises:
        WorkError: the tokenizer could not be fetched.
    """
    text = _config(name)["text_cfg"]
    if not text.get("hf_tokenizer_name"):
        return partial(tokenize, context_length=text.get("context_length", 77))
    return _hub_tokenizer(name)


@cache
def _hub_tokenizer(name: str) -> Tokenize:
    otherwise = "run the command once on a machine with a network, and copy its Hugging Face cache"
    with download_errors(f"the tokenizer of {name}", otherwise):
        read = _open_clip().get_tokenizer(name, trust_remote_code=False)
    return lambda texts: read(list(texts))


def _num_start(read: Tokenize) -> int:
    """Return how many tokens are before every text."""
    rows = read(["cat", "photo", "of", "many"]).T.tolist()
    return next((k for k, column in enumerate(rows) if len(set(column)) > 1), 0)


def load_backbone(
    name: str,
    pretrained: str | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Backbone:
    """Load a frozen backbone, with the activation and the norms folded into its weights."""
    clip = load_clip(name, pretrained)
    return ready(name, pretrained, clip.folded().to(device=device, dtype=dtype))


def ready(name: str, pretrained: str | None, clip: Clip) -> Backbone:
    """Return a loaded CLIP with its tokenizer and normalization."""
    if name == "mini":
        return Backbone(name, clip, vocabulary=MINI_VOCABULARY)
    mean, std = _normalisation(name, pretrained)
    return Backbone(name, clip, mean, std, tokenize=tokenizer_of(name))


def _normalisation(name: str, pretrained: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return a tag's mean and std; for a file, those of the model's tags if they agree, else OpenAI's."""
    tags = _tags(name)
    tags = [pretrained] if pretrained in tags else tags
    known = [_open_clip().get_pretrained_cfg(name, tag) for tag in tags]
    found = {(tuple(c.get("mean") or OPENAI_MEAN), tuple(c.get("std") or OPENAI_STD)) for c in known}
    return found.pop() if len(found) == 1 else (OPENAI_MEAN, OPENAI_STD)


def _tags(name: str) -> list[str]:
    return list(_open_clip().list_pretrained_tags_by_model(name))


def load_clip(name: str, pretrained: str | None) -> Clip:
    """Load a frozen CLIP as its weights are stored.

    Args:
        name: `mini`, or an open_clip model of a supported family (`ViT-B-16-quickgelu`; docs/data.md).
        pretrained: an open_clip tag (`openai`), a local .safetensors file, or `random` (for speed
            measurements only). None: the weights that come with `mini`.

    Raises:
        UserError: unknown name or tag, missing file, weights that do not fit the model (says in what).
        WorkError: the tag's weights could not be fetched.
    """
    require_backbone(name, pretrained)
    if name == "mini" and pretrained in (None, "random"):
        return _arranged(name, load_mini())
    if pretrained == "random":
        with torch.random.fork_rng(devices=[]), suppress_logs():
            torch.manual_seed(0)
            return _arranged(name, _open_clip().create_model(name, pretrained=None).state_dict())
    if pretrained not in _tags(name):
        state = read_weights(Path(str(pretrained)))
    else:
        otherwise = "download them on a machine with a network and pass the file with --pretrained FILE"
        with download_errors(f"the weights '{pretrained}' of {name}", otherwise):
            state = _open_clip().create_model(name, pretrained=pretrained).state_dict()
    require_tensors(_described(name)[1], state, where=str(pretrained))
    return _arranged(name, state)


def require_backbone(name: str, pretrained: str | None) -> None:
    """Check a backbone as far as possible before anything of it is read or fetched.

    Raises:
        UserError: as `load_clip`: an unknown name or tag, an unsupported model, or no weights named.
    """
    _described(name)
    config = _config(name)
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and find_spec("transformers") is None:
        raise UserError(
            f"backbone {name} reads texts with {tokenizer}, which needs transformers: "
            "pip install '.[transformers]'"
        )
    if pretrained is None and name != "mini":
        raise UserError(
            f"backbone {name} needs weights: set backbone.pretrained (--pretrained) to openai, or to a file"
        )
    if pretrained in (None, "random"):
        return
    if pretrained not in (tags := _tags(name)):
        file = Path(str(pretrained))
        if file.suffix in {".pt", ".pth", ".bin", ".safetensors"} or file_size(file) is not None:
            return
        raise UserError(
            f"no weights '{pretrained}' for {name}: it is neither a file nor a tag of open_clip "
            f"({', '.join(tags) or 'none'})"
        )
    weights_are_quick = bool(_open_clip().get_pretrained_cfg(name, pretrained).get("quick_gelu", False))
    if weights_are_quick != bool(config.get("quick_gelu")):
        theirs = "quick_gelu" if weights_are_quick else "gelu"
        better = name.removesuffix("-quickgelu") + ("-quickgelu" if weights_are_quick else "")
        raise UserError(
            f"weights '{pretrained}' were trained with activation {theirs}, which {name} does not "
            f"use; use {better}"
        )


def outline(name: str) -> Clip:
    """Return a CLIP of a model's shapes on the device `meta`, without weights.

    Raises:
        UserError: as `load_clip`.
    """
    return _arranged(name, _described(name)[1])


def _arranged(name: str, state: Mapping[str, Tensor]) -> Clip:
    clip = from_state_dict(state, _described(name)[0])
    return clip if clip.causal else replace(clip, num_start=_num_start(tokenizer_of(name)))


@lru_cache(maxsize=8)
def _described(name: str) -> tuple[Architecture, Mapping[str, Tensor]]:
    """Return a model's architecture, and its tensors on the device `meta`.

    Raises:
        UserError: there is no such model, or its family is not supported.
    """
    config = _config(name)
    if name == "mini":  # without open_clip, which takes seconds to import
        architecture, state = clip_architecture(config), load_mini()
    else:
        siglip = is_siglip(name, config)
        with torch.device("meta"), suppress_logs():
            model = _open_clip().create_model(name, device="meta")
        architecture = siglip_architecture(config, model) if siglip else clip_architecture(config)
        state = model.state_dict()
    return architecture, {key: tensor.to("meta") for key, tensor in state.items() if key != "logit_bias"}


def _config(name: str) -> ModelConfig:
    if name == "mini":
        return mini_config()
    if ":" in name:  # open_clip would read the model from wherever such a name says
        raise UserError(f"unknown backbone '{name}': names of hubs and folders are not supported")
    config: ModelConfig | None = _open_clip().get_model_config(name)
    if config is None:
        close = [m for m in _open_clip().list_models() if m.lower().startswith(name.lower()[:5])][:6]
        hint = f"did you mean {', '.join(close)}?" if close else "known are mini and open_clip's models"
        raise UserError(f"unknown backbone '{name}': {hint}")
    return config
