"""Where open_clip enters: model configurations, pretrained weights, the tokenizer, the templates.

Importing open_clip takes three seconds, for image models that are not used here, so only named models do it.
What every run needs, the tokenizer and the constants, are read from modules of its own.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial, reduce
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prometar.bundled.weights import MINI_VOCABULARY, load_config, load_mini
from prometar.clip.architecture import Architecture, Unlike
from prometar.clip.expected_tensors import Shapes, expected_shapes, in_our_names, require_tensors
from prometar.clip.families import architecture
from prometar.clip.frozen import closed
from prometar.clip.frozen_features import Tokenize
from prometar.clip.model import Clip, from_state_dict
from prometar.clip.trunks import image_network
from prometar.clip.weight_files import read_weights
from prometar.clip.weights_digest import weights_digest
from prometar.errors import UserError
from prometar.io.files import size_of
from prometar.io.hub import fetching, unlogged


def _open_clip() -> Any:
    import open_clip

    return open_clip


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


def tokenize(texts: Sequence[str], context_length: int = 77) -> Tensor:
    """CLIP's token ids (N, context length): SOS, text, EOT (the largest id), zeros; long texts are cut."""
    return _module("tokenizer").tokenize(list(texts), context_length)


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
    tokenize: Tokenize = tokenize

    def words(self, text: str) -> Tensor:
        """The ids of a text's own tokens, without those that stand before and behind every text."""
        form = self.clip.form
        ids, nothing = self.tokenize([text])[0], self.tokenize([""])[0]
        if form.text_pool == "last":
            behind = set(nothing[form.num_start :].tolist())
            end = next((k for k, each in enumerate(ids.tolist()) if each in behind), len(ids))
        else:
            end = form.end(ids.tolist())
        return ids[form.num_start : end]

    def normalise(self, images_BHW3: Tensor) -> Tensor:
        """uint8 images (B, H, W, 3) to normalised (B, 3, H, W) in the backbone's precision and place."""
        # Rounded once, at the end: pixels are no coarser than the precision makes them.
        images = images_BHW3.to(self.clip.device).to(self.clip.working_dtype).permute(0, 3, 1, 2) / 255
        mean, std = self._constants
        return ((images - mean) / std).to(self.clip.dtype)

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the weights: a second for ViT-B/16, once."""
        return weights_digest(self.clip)

    @cached_property
    def _constants(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (3, 1, 1) where the images are, brought there once."""
        dtype, device = self.clip.working_dtype, self.clip.device
        mean, std = (
            torch.tensor(v, dtype=dtype, device=device)[:, None, None] for v in (self.mean, self.std)
        )
        return mean, std


def tokenizer_of(name: str) -> Tokenize:
    """A model's tokenizer; those of the Hugging Face hub need `transformers`, and a network the first time.

    Raises:
        UserError: as `load_clip`, or `transformers` is missing.
        WorkError: the tokenizer could not be fetched.
    """
    config, _ = _described(name)
    if not config["text_cfg"].get("hf_tokenizer_name"):
        return partial(tokenize, context_length=config["text_cfg"].get("context_length", 77))
    _require_transformers(name, config)
    return _hub_tokenizer(name)


@cache
def _hub_tokenizer(name: str) -> Tokenize:
    otherwise = "run the command once on a machine with a network, and copy its Hugging Face cache"
    with fetching(f"the tokenizer of {name}", otherwise):
        read: Any = _open_clip().get_tokenizer(name, trust_remote_code=False)
    return lambda texts: read(list(texts))


def _require_transformers(name: str, config: Mapping[str, Any]) -> None:
    """Raise a UserError if a model's tokenizer needs `transformers`, which is not installed."""
    tokenizer = config["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and find_spec("transformers") is None:
        raise UserError(
            f"backbone {name} reads texts with {tokenizer}, which needs transformers: "
            "pip install '.[transformers]'"
        )


def _num_start(read: Tokenize) -> int:
    """How many tokens stand before every text."""
    rows = read(["cat", "photo", "of", "many"]).T.tolist()
    return next((k for k, column in enumerate(rows) if len(set(column)) > 1), 0)


def load_backbone(
    name: str,
    pretrained: str | None,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Backbone:
    """A frozen backbone, ready to run: `load_clip`'s weights with the activation folded into them."""
    clip = load_clip(name, pretrained)
    return ready(name, pretrained, clip.folded().to(device=device, dtype=dtype))


def ready(name: str, pretrained: str | None, clip: Clip) -> Backbone:
    """A loaded CLIP as the backbone that it is: with its tokenizer, and what its images are normalised by."""
    if name == "mini":
        return Backbone(name, clip, vocabulary=MINI_VOCABULARY)
    mean, std = _normalisation(name, pretrained)
    return Backbone(name, clip, mean, std, tokenize=tokenizer_of(name))


def _normalisation(name: str, pretrained: str | None) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Of a tag's weights; for a file, that of the model's tags where they agree, else OpenAI's."""
    tags = _open_clip().list_pretrained_tags_by_model(name)
    tags = [pretrained] if pretrained in tags else tags
    known = [_open_clip().get_pretrained_cfg(name, tag) for tag in tags]
    found = {(tuple(c.get("mean") or OPENAI_MEAN), tuple(c.get("std") or OPENAI_STD)) for c in known}
    return found.pop() if len(found) == 1 else (OPENAI_MEAN, OPENAI_STD)


def load_clip(name: str, pretrained: str | None) -> Clip:
    """A frozen CLIP as its weights are stored.

    Args:
        name: `mini`, or an open_clip model of a supported family (`ViT-B-16-quickgelu`; docs/backbones.md).
        pretrained: an open_clip tag (`openai`), a local .safetensors file, or `random` (for speed
            measurements only). None: the weights that come with `mini`.
    Raises:
        UserError: unknown name or tag, missing file, weights that do not fit the model (says in what).
        WorkError: the tag's weights could not be fetched.
    """
    if name == "mini" and pretrained is None:
        return _clip(name, load_mini()[1], where="mini")
    require_backbone(name, pretrained)
    assert pretrained is not None
    if pretrained == "random":
        return _clip(name, _random_state(name), where=name)
    if _is_file(name, pretrained):
        return _clip(name, read_weights(Path(pretrained)), where=pretrained)
    return _clip(name, _fetch(name, pretrained), where=f"'{pretrained}'")


def require_backbone(name: str, pretrained: str | None) -> Architecture:
    """What a model is, as far as can be told before anything of it is read or fetched.

    Raises:
        UserError: as `load_clip`: an unknown name or tag, an unsupported model, or no weights named.
    """
    config, arch = _described(name)
    if pretrained is None and name != "mini":
        raise UserError(
            f"backbone {name} needs weights: set backbone.pretrained (--pretrained) to openai, or to a file"
        )
    if pretrained not in (None, "random") and not _is_file(name, str(pretrained)):
        _require_tag(name, config, str(pretrained))
    _require_transformers(name, config)
    return arch


def _is_file(name: str, pretrained: str) -> bool:
    """Whether weights are meant to be a file; a tag comes first."""
    file = Path(pretrained)
    named = file.suffix in {".pt", ".pth", ".bin", ".safetensors"}
    return not is_tag(name, pretrained) and (named or size_of(file) is not None)


def _require_tag(name: str, config: dict[str, Any], tag: str) -> None:
    """Raises a UserError where open_clip knows no such weights, or they have another activation."""
    tags = _open_clip().list_pretrained_tags_by_model(name)
    if tag not in tags:
        raise UserError(
            f"no weights '{tag}' for {name}: it is no file, and open_clip knows {', '.join(tags) or 'none'}"
        )
    weights_are_quick = bool(_open_clip().get_pretrained_cfg(name, tag).get("quick_gelu", False))
    if weights_are_quick != bool(config.get("quick_gelu")):
        theirs = "quick_gelu" if weights_are_quick else "gelu"
        better = name.removesuffix("-quickgelu") + ("-quickgelu" if weights_are_quick else "")
        raise UserError(
            f"weights '{tag}' were trained with activation {theirs}, which {name} has not: use {better}"
        )


def is_tag(name: str, pretrained: str) -> bool:
    """Whether open_clip knows weights of a model by this tag."""
    return pretrained in _open_clip().list_pretrained_tags_by_model(name)


def has_cached(name: str, tag: str) -> bool:
    """Whether a tag's weights lie where open_clip looks before it fetches them."""
    from huggingface_hub import try_to_load_from_cache

    known = _open_clip().get_pretrained_cfg(name, tag)
    url, hub = str(known.get("url") or ""), str(known.get("hf_hub") or "")
    repo, _, file = hub.rpartition("/")
    usual = (
        "open_clip_model.safetensors",
        "open_clip_pytorch_model.safetensors",
        "open_clip_pytorch_model.bin",
    )
    on_hub = [try_to_load_from_cache(repo, each) for each in ((file,) if file else usual)] if hub else []
    by_url = Path(os.path.expanduser("~/.cache/clip"), url.rsplit("/", 1)[-1])  # Path.home may raise
    return any(isinstance(path, str) for path in on_hub) or (bool(url) and by_url.is_file())


def outline(name: str) -> Clip:
    """A frozen CLIP of a model's shapes, on the device `meta`: what can be counted without any weights.

    Raises:
        UserError: as `load_clip`.
    """
    empty = {key: torch.empty(shape, device="meta") for key, shape in _shapes(name).items()}
    return _arranged(name, empty)


def _clip(name: str, state: dict[str, Tensor], *, where: str) -> Clip:
    require_tensors(_shapes(name), state, where=where)
    return _arranged(name, state)


def _arranged(name: str, state: dict[str, Tensor]) -> Clip:
    config, arch = _described(name)
    state = _widened(state)
    if config["text_cfg"].get("hf_tokenizer_name"):
        arch = replace(arch, form=replace(arch.form, num_start=_num_start(tokenizer_of(name))))

    def own(tower: str) -> dict[str, Tensor]:
        return {key.removeprefix(tower): tensor for key, tensor in state.items() if key.startswith(tower)}

    with torch.device(state["logit_scale"].device), torch.random.fork_rng(devices=[]):
        image = closed(image_network(config), own("visual."), arch.closed) if arch.closed else None
    return from_state_dict(in_our_names(arch, _shapes(name), state), arch, closed=image)


def _widened(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """In at least float32, where what float16 holds is exact, and what is computed of it nearly so."""
    numbers = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    wide = reduce(torch.promote_types, {tensor.dtype for tensor in numbers.values()}, torch.float32)
    return {**state, **{key: tensor.to(wide) for key, tensor in numbers.items()}}


@lru_cache(maxsize=8)
def _shapes(name: str) -> Shapes:
    config, arch = _described(name)
    with _supported(name):
        return expected_shapes(name, config, arch)


@lru_cache(maxsize=8)
def _described(name: str) -> tuple[dict[str, Any], Architecture]:
    """A model's configuration and what it describes.

    Raises:
        UserError: there is no such model, or its family is not supported.
    """
    config = load_config() if name == "mini" else _config(name)
    with _supported(name):
        return config, architecture(config)


@contextmanager
def _supported(name: str) -> Iterator[None]:
    try:
        yield
    except Unlike as reason:
        raise UserError(
            f"backbone {name} is not supported: {reason}; use e.g. ViT-B-16-quickgelu (docs/backbones.md)"
        ) from None


def _config(name: str) -> dict[str, Any]:
    if ":" in name:  # open_clip would read the model from wherever such a name says
        raise UserError(f"unknown backbone '{name}': names of hubs and folders are not taken")
    config: dict[str, Any] | None = _open_clip().get_model_config(name)
    if config is None:
        close = [m for m in _open_clip().list_models() if m.lower().startswith(name.lower()[:5])][:6]
        hint = f"did you mean {', '.join(close)}?" if close else "known are mini and open_clip's models"
        raise UserError(f"unknown backbone '{name}': {hint}")
    return config


def _random_state(name: str) -> dict[str, Tensor]:
    if name == "mini":
        return load_mini()[1]
    with torch.random.fork_rng(devices=[]), unlogged():
        torch.manual_seed(0)
        return dict(_open_clip().create_model(name, pretrained=None, pretrained_text=False).state_dict())


def _fetch(name: str, tag: str) -> dict[str, Tensor]:
    with fetching(
        f"the weights '{tag}' of {name}",
        "download them on a machine with a network and pass the file with --pretrained FILE",
    ):
        model = _open_clip().create_model(name, pretrained=tag, pretrained_text=False)
    return dict(model.state_dict())
