"""Where open_clip enters: model configurations, pretrained weights, the tokenizer, the templates.

Importing open_clip takes three seconds, for image models that are not used here, so only named models do it.
What every run needs, the tokenizer and the constants, are read from modules of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prometar.backbone.clip import Clip, from_state_dict
from prometar.backbone.expected_tensors import Architecture, architecture, require_tensors
from prometar.backbone.weight_files import WeightsFile, read_weights
from prometar.bundled.weights import MINI_VOCABULARY, load_mini
from prometar.errors import UserError, WorkError
from prometar.io.files import size_of


@cache
def _module(name: str) -> Any:
    """A module of open_clip that uses no other, without the package around it."""
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
"""A hundred names of things, to see what prompts do to names that they were not tuned for."""

OPENAI_MEAN = _module("constants").OPENAI_DATASET_MEAN
OPENAI_STD = _module("constants").OPENAI_DATASET_STD


@dataclass(frozen=True)
class Backbone:
    """A frozen CLIP with what its images must be normalised by (per-channel mean and standard deviation).

    `vocabulary`: Names of things that it knows, for `prometar.training.drift`.
    """

    name: str
    clip: Clip
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    vocabulary: tuple[str, ...] = FOREIGN_NAMES

    def normalise(self, images_BHW3: Tensor) -> Tensor:
        """uint8 images (B, H, W, 3) to normalised (B, 3, H, W) in the backbone's precision and place."""
        # Rounded once, at the end: pixels are no coarser than the precision makes them.
        images = images_BHW3.to(self.clip.device).to(self.clip.working_dtype).permute(0, 3, 1, 2) / 255
        mean, std = self._constants
        return ((images - mean) / std).to(self.clip.dtype)

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (3, 1, 1) where the images are, brought there once."""
        dtype, device = self.clip.working_dtype, self.clip.device
        mean, std = (
            torch.tensor(v, dtype=dtype, device=device)[:, None, None] for v in (self.mean, self.std)
        )
        return mean, std


@cache
def _tokenizer() -> Any:
    return _module("tokenizer").SimpleTokenizer()


def tokenize(texts: Sequence[str]) -> Tensor:
    """Token ids (N, 77), SOS first, EOT the largest id, zeros behind it; texts that do not fit are cut."""
    return _tokenizer()(list(texts))


def load_backbone(
    name: str,
    pretrained: str | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Backbone:
    """A frozen backbone, ready to run: `load_clip`'s weights with the activation folded into them."""
    clip = load_clip(name, pretrained)
    vocabulary = MINI_VOCABULARY if name == "mini" else FOREIGN_NAMES
    return Backbone(name, clip.folded().to(device=device, dtype=dtype), vocabulary=vocabulary)


def load_clip(name: str, pretrained: str | None) -> Clip:
    """A frozen CLIP as its weights are stored.

    Args:
        name: `mini`, or an open_clip model with a ViT and a causal text transformer (`ViT-B-16-quickgelu`).
        pretrained: an open_clip tag (`openai`), a local .pt or .safetensors file, or `random` (for speed
            measurements only). None: the weights that come with `mini`.
    Raises:
        UserError: unknown name or tag, missing file, weights that do not fit the model (says in what).
        WorkError: the tag's weights could not be fetched.
    """
    if name == "mini" and pretrained is None:
        return _clip(*load_mini(), where="mini")
    config = _config(name)
    if pretrained is None:
        raise UserError(
            f"backbone {name} needs weights: set backbone.pretrained (--pretrained) to openai, or to a file"
        )
    if pretrained == "random":
        return _clip(config, _random_state(name), where=name)
    tagged = is_tag(name, pretrained)
    file = Path(pretrained)
    if not tagged and (file.suffix in {".pt", ".pth", ".bin", ".safetensors"} or size_of(file) is not None):
        weights = read_weights(file)
        _check(name, architecture(config), weights)
        return _clip(config, weights.tensors, where=str(file))
    return _clip(config, _fetch(name, config, pretrained), where=f"'{pretrained}'")


def is_tag(name: str, pretrained: str) -> bool:
    """Whether open_clip knows weights of a model by this tag."""
    import open_clip

    return pretrained in open_clip.list_pretrained_tags_by_model(name)


def has_cached(name: str, tag: str) -> bool:
    """Whether a tag's weights lie where open_clip looks before it fetches them."""
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    known = open_clip.get_pretrained_cfg(name, tag)
    url, hub = str(known.get("url") or ""), str(known.get("hf_hub") or "")
    repo, _, file = hub.rpartition("/")
    usual = (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    )
    on_hub = [try_to_load_from_cache(repo, each) for each in ((file,) if file else usual)] if hub else []
    by_url = Path.home() / ".cache" / "clip" / url.rsplit("/", 1)[-1]
    return any(isinstance(path, str) for path in on_hub) or (bool(url) and by_url.is_file())


def outline(name: str) -> Clip:
    """A frozen CLIP of a model's shapes, on the device `meta`: what can be counted without any weights.

    Raises:
        UserError: as `load_clip`.
    """
    config = _config(name)
    state = load_mini()[1] if name == "mini" else _create(name, "meta")
    return _arranged(config, {key: value.to("meta") for key, value in state.items()})


def _clip(config: dict[str, Any], state: dict[str, Tensor], *, where: str) -> Clip:
    require_tensors(architecture(config), state, where=where)
    return _arranged(config, state)


def _arranged(config: dict[str, Any], state: dict[str, Tensor]) -> Clip:
    arch = architecture(config)
    clip = from_state_dict(
        state, text_heads=arch.text_heads, vision_heads=arch.vision_heads, activation=arch.activation
    )
    return clip.to(clip.working_dtype)  # files in float16 are exact in float32, products of theirs are not


def _config(name: str) -> dict[str, Any]:
    if name == "mini":
        return load_mini()[0]
    if ":" in name:  # open_clip would read the model from wherever such a name says
        raise UserError(f"unknown backbone '{name}': names of hubs and folders are not taken")
    import open_clip

    config = open_clip.get_model_config(name)
    if config is None:
        close = [m for m in open_clip.list_models() if m.lower().startswith(name.lower()[:5])][:6]
        hint = f"did you mean {', '.join(close)}" if close else "known are mini and open_clip's models"
        raise UserError(f"unknown backbone '{name}': {hint}?")
    text, vision = config["text_cfg"], config["vision_cfg"]
    odd = [k for k in ("hf_model_name", "embed_cls", "no_causal_mask") if text.get(k)]
    odd += [k for k in ("timm_model_name", "attentional_pool", "no_ln_pre", "ls_init_value") if vision.get(k)]
    odd += [k for k in ("pool_type", "final_ln_after_pool") if vision.get(k, "tok") not in ("tok", False)]
    if odd or not isinstance(vision.get("layers"), int) or config.get("custom_text"):
        raise UserError(
            f"backbone {name} is not a plain CLIP (ViT with a class token, causal text transformer"
            f"{': ' + ', '.join(odd) if odd else ''}); use e.g. ViT-B-16-quickgelu"
        )
    return config


def _check(name: str, expected: Architecture, weights: WeightsFile) -> None:
    """Compare what the file says of itself with the model's configuration."""
    found = weights.describe()
    for key, value in found.items():
        wanted = getattr(expected, key)
        if str(wanted) != str(value):
            hint = ""
            if key == "activation":
                better = name.removesuffix("-quickgelu") + ("-quickgelu" if value == "quick_gelu" else "")
                hint = f"; use --backbone {better}"
            raise UserError(
                f"{weights.path} does not fit {name}: {key} is {value} in the file, "
                f"{wanted} in the model{hint}"
            )


def _random_state(name: str) -> dict[str, Tensor]:
    if name == "mini":
        return load_mini()[1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _create(name, "cpu")


def _create(name: str, device: str) -> dict[str, Tensor]:
    """The state of a new model; on the device `meta` it has shapes alone."""
    import open_clip

    logging.disable(logging.WARNING)  # it would warn of what was asked for
    try:
        return dict(open_clip.create_model(name, pretrained=None, device=device).state_dict())
    finally:
        logging.disable(logging.NOTSET)


def _fetch(name: str, config: dict[str, Any], tag: str) -> dict[str, Tensor]:
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UserError(
            f"no weights '{tag}' for {name}: it is no file, and open_clip knows {', '.join(tags) or 'none'}"
        )
    weights_are_quick = bool(open_clip.get_pretrained_cfg(name, tag).get("quick_gelu", False))
    if weights_are_quick != bool(config.get("quick_gelu")):
        theirs = "quick_gelu" if weights_are_quick else "gelu"
        better = name.removesuffix("-quickgelu") + ("-quickgelu" if weights_are_quick else "")
        raise UserError(
            f"weights '{tag}' were trained with activation {theirs}, which {name} has not: use {better}"
        )
    try:
        model = open_clip.create_model(name, pretrained=tag)
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WorkError(
            f"cannot fetch the weights '{tag}' of {name} ({reason[:160]}): download them on a machine with a "
            "network and pass the file with --pretrained FILE"
        ) from None
    return dict(model.state_dict())
