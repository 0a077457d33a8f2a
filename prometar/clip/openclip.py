"""Backbones by name: open_clip's models and the embedded `mini`, with weights, tokenizers and templates.

Importing open_clip takes three seconds, so the three modules that `mini` needs are loaded without it.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache, partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from prometar.clip.features import Tokenize
from prometar.clip.model import Clip
from prometar.clip.weights import Architecture, from_state_dict, read_weights, require_tensors, weights_digest
from prometar.device import matmul_precision
from prometar.embedded.weights import MINI_VOCABULARY, load_mini, mini_config
from prometar.errors import UserError, convert_download_errors, suppress_logs
from prometar.io.files import file_size

ModelConfig = Mapping[str, Any]
"""Model configuration of open_clip."""

_SUPPORTED_CLIP_VISION_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
_SUPPORTED_CLIP_TEXT_KEYS = {"context_length", "vocab_size", "width", "heads", "layers"}
_SUPPORTED_SIGLIP_TEXT_KEYS = _SUPPORTED_CLIP_TEXT_KEYS | {
    "mlp_ratio",
    "hf_tokenizer_name",
    "tokenizer_kwargs",
    "no_causal_mask",
    "pool_type",
    "proj_bias",
    "proj_type",
    "norm_kwargs",
    "act_kwargs",
}


def _open_clip() -> ModuleType:
    import open_clip

    return open_clip


@cache
def _submodule(name: str) -> ModuleType:
    """Load a self-contained submodule of open_clip without importing the package."""
    package_spec: Any = find_spec("open_clip")
    path = Path(package_spec.origin).with_name(f"{name}.py")
    spec: Any = spec_from_file_location(f"open_clip_{name}", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TEMPLATES: tuple[str, ...] = tuple(
    template("{}") for template in _submodule("zero_shot_metadata").OPENAI_IMAGENET_TEMPLATES[:60]
)
"""The first 60 of OpenAI's ImageNet templates, with "{}" for the class name, as in ProMetaR's code."""

IMAGENET_VOCABULARY: tuple[str, ...] = tuple(_submodule("zero_shot_metadata").IMAGENET_CLASSNAMES[::10])
"""100 ImageNet class names: the `Backbone.vocabulary` of open_clip's models."""

OPENAI_MEAN = _submodule("constants").OPENAI_DATASET_MEAN
OPENAI_STD = _submodule("constants").OPENAI_DATASET_STD


def tokenize(texts: Sequence[str], context_length: int = 77) -> Tensor:
    """Return CLIP's token ids (N, context length): start (SOT), text, end (EOT, the largest id), zeros.

    Raises:
        UserError: a text has more tokens, as in OpenAI's tokenizer.
    """
    # open_clip cuts long texts without a warning. A text that fits leaves the additional last token empty.
    longer_NT = _submodule("tokenizer").tokenize(list(texts), context_length + 1)
    is_complete_N = longer_NT[:, context_length] == 0
    _require_complete(texts, is_complete_N, context_length)
    return longer_NT[:, :context_length].contiguous()


def _require_complete(texts: Sequence[str], is_complete_N: Tensor, context_length: int) -> None:
    """Raise a UserError that names the first text that is not complete."""
    cut_texts = []
    for text, is_complete in zip(texts, is_complete_N.tolist(), strict=True):
        if not is_complete:
            cut_texts.append(text)
    if not cut_texts:
        return
    first, *others = cut_texts
    more = f" and {len(others)} more" if others else ""
    raise UserError(
        f"The backbone accepts {context_length} tokens per text, but {first[:60]!a}...{more} would be cut. "
        "Use shorter class names, templates, regularizer.texts or a smaller prompts.text_length."
    )


@dataclass(frozen=True)
class Backbone:
    """Frozen CLIP, its tokenizer, and the channel means and standard deviations that normalize its images.

    vocabulary: Names of common objects. `prometar.training.drift` uses the names unrelated to the dataset.
    tf32: True if float32 matrix products use TF32 on GPUs, in training and scoring.
    folded_digest: Digest of the folded weights if `clip` is not folded.
    """

    name: str
    clip: Clip
    mean: tuple[float, ...] = OPENAI_MEAN
    std: tuple[float, ...] = OPENAI_STD
    vocabulary: tuple[str, ...] = IMAGENET_VOCABULARY
    tokenize: Tokenize = tokenize
    tf32: bool = False
    folded_digest: str = ""

    def matmul_precision(self) -> AbstractContextManager[None]:
        """Return a context in which float32 matrix products on GPUs use TF32 only if `tf32` is set."""
        return matmul_precision("tf32" if self.tf32 else "ieee")

    def token_ids(self, text: str) -> Tensor:
        """Return the token ids of a text without start, end and padding tokens."""
        (ids,) = self.tokenize([text])
        if self.clip.causal:
            end = int(ids.argmax())  # the end token has the largest id
            return ids[self.clip.num_start : end]
        # After its start tokens, an empty text consists of end and padding tokens.
        (ids_without_text,) = self.tokenize([""])
        end_and_padding = ids_without_text[self.clip.num_start :]
        after_start = ids[self.clip.num_start :]
        is_end = torch.isin(after_start, end_and_padding)
        num_text_tokens = int(is_end.int().argmax())  # argmax returns the first True
        return after_start[:num_text_tokens]

    def normalize(self, images_BHW3: Tensor) -> Tensor:
        """Convert uint8 images to normalized (B, 3, H, W) in the backbone's precision, on its device."""
        # Computed in `working_dtype`, because each step in half precision would add a rounding error.
        images = images_BHW3.to(self.clip.device).to(self.clip.working_dtype).permute(0, 3, 1, 2) / 255
        mean, std = self._mean_and_std
        return ((images - mean) / std).to(self.clip.dtype)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the folded weights, even if `clip` is not folded.

        So a method that changes blocks has the same digest as other methods, and results can be compared.
        Computing the digest takes a second for ViT-B/16.
        """
        return self.folded_digest or weights_digest(self.clip)

    @cached_property
    def _mean_and_std(self) -> Tensor:
        """Mean and standard deviation (2, 3, 1, 1) on the backbone's device."""
        stacked = torch.tensor([self.mean, self.std], dtype=self.clip.working_dtype, device=self.clip.device)
        return stacked[..., None, None]


def load_tokenizer(name: str) -> Tokenize:
    """Return a model's tokenizer. SigLIP's tokenizers require `transformers` and are downloaded once."""
    text_config = _config(name)["text_cfg"]
    if not text_config.get("hf_tokenizer_name"):
        return partial(tokenize, context_length=text_config.get("context_length", 77))
    return _hub_tokenizer(name)


@cache
def _hub_tokenizer(name: str) -> Tokenize:
    fix = "Run the command once on a machine with internet access, and copy its Hugging Face cache here."
    with convert_download_errors(f"the tokenizer of {name}", fix):
        tokenizer = _open_clip().get_tokenizer(name, trust_remote_code=False)

    def complete_ids(texts: Sequence[str]) -> Tensor:
        # A text is cut if it has more tokens when the context is longer.
        ids_NT = tokenizer(list(texts))
        context_length = ids_NT.shape[1]
        longer_NT = tokenizer(list(texts), context_length=context_length + 1)
        no_text = tokenizer([""])  # start, end and padding
        num_kept = (~torch.isin(ids_NT, no_text)).sum(dim=1)
        num_given = (~torch.isin(longer_NT, no_text)).sum(dim=1)
        _require_complete(texts, num_kept == num_given, context_length)
        return ids_NT

    return complete_ids


def load_backbone(
    name: str,
    pretrained: str | None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    folded: bool = True,
) -> Backbone:
    """Load a frozen backbone, by default with folded weights (`Tower.folded`).

    Other arguments and errors: see `load_clip`.
    """
    clip = load_clip(name, pretrained)
    if folded:
        return build_backbone(name, pretrained, clip.folded().to(device=device, dtype=dtype))
    folded_digest = weights_digest(clip.folded().to(device="cpu", dtype=dtype))
    backbone = build_backbone(name, pretrained, clip.to(device=device, dtype=dtype))
    return replace(backbone, folded_digest=folded_digest)


def build_backbone(name: str, pretrained: str | None, clip: Clip) -> Backbone:
    """Add the tokenizer and the image normalization to a loaded CLIP.

    If weights come from a file and the model's open_clip tags differ in normalization, OpenAI's is used.
    """
    if name == "mini":
        return Backbone(name, clip, vocabulary=MINI_VOCABULARY)
    tags = tags_of(name)
    possible_tags = [pretrained] if pretrained in tags else tags  # a file may contain weights of any tag
    normalizations = set()
    for tag in possible_tags:
        config = _open_clip().get_pretrained_cfg(name, tag)
        tag_mean = tuple(config.get("mean") or OPENAI_MEAN)
        tag_std = tuple(config.get("std") or OPENAI_STD)
        normalizations.add((tag_mean, tag_std))
    mean = OPENAI_MEAN
    std = OPENAI_STD
    if len(normalizations) == 1:
        mean, std = normalizations.pop()
    return Backbone(name, clip, mean, std, tokenize=load_tokenizer(name))


def tags_of(name: str) -> list[str]:
    """Return the tags of open_clip's weights for a model."""
    return list(_open_clip().list_pretrained_tags_by_model(name))


def load_clip(name: str, pretrained: str | None) -> Clip:
    """Load a frozen CLIP without folding its weights.

    Args:
        name: `mini`, or a supported open_clip model such as `ViT-B-16-quickgelu` (docs/data.md).
        pretrained: An open_clip tag such as `openai`, a local .safetensors file, or `random` (for speed
            measurements only). For `mini`, both None and `random` load its embedded, trained weights.

    Raises:
        UserError: as in `require_backbone`, or the weights are missing or do not fit the model.
        WorkError: the tag's weights or the tokenizer cannot be downloaded.
    """
    require_backbone(name, pretrained)
    if name == "mini" and pretrained in (None, "random"):
        return _build_clip(name, load_mini())
    if pretrained == "random":
        with torch.random.fork_rng(devices=[]), suppress_logs():
            torch.manual_seed(0)
            model = _open_clip().create_model(name, pretrained=None)
            return _build_clip(name, model.state_dict())

    tag_or_file = str(pretrained)
    if tag_or_file in tags_of(name):
        state = _download_weights(name, tag_or_file)
    else:
        state = read_weights(Path(tag_or_file))
    require_tensors(_describe_model(name).empty_state, state, source=tag_or_file)
    return _build_clip(name, state)


def _download_weights(name: str, tag: str) -> Mapping[str, Tensor]:
    """Return the state dict of a tag's weights, which open_clip downloads once."""
    url = _weights_url(name, tag)
    fix = f"Download {url} on another machine, and set backbone.pretrained (--pretrained) to the file."
    with convert_download_errors(f"the weights '{tag}' of {name}", fix):
        state: Mapping[str, Tensor] = _open_clip().create_model(name, pretrained=tag).state_dict()
    return state


def require_backbone(name: str, pretrained: str | None) -> None:
    """Check that a backbone's name and tag or file are valid, without reading or downloading weights.

    Raises:
        UserError: the name or tag is unknown, no weights are specified, `transformers` is required but not
            installed, the model is not supported, or its activation differs from that of the weights.
    """
    _describe_model(name)  # refuses models that are not supported
    tokenizer = _config(name)["text_cfg"].get("hf_tokenizer_name")
    if tokenizer and find_spec("transformers") is None:
        raise UserError(
            f"Backbone {name} uses the tokenizer {tokenizer}, which requires transformers. "
            "Run pip install '.[transformers]'."
        )
    if pretrained is None and name != "mini":
        raise UserError(
            f"Backbone {name} needs weights. "
            "Set backbone.pretrained (--pretrained) to an open_clip tag, such as openai, or to a file."
        )
    if pretrained in (None, "random"):
        return
    tag_or_file = str(pretrained)
    if tag_or_file in tags_of(name):
        _require_same_activation(name, tag_or_file)
    else:
        _require_weights_file(name, tag_or_file)


def _require_same_activation(name: str, tag: str) -> None:
    """Check that a tag's weights were trained with the model's activation.

    Raises:
        UserError: one of them uses QuickGELU and the other GELU.
    """
    weights_use_quick_gelu = bool(_open_clip().get_pretrained_cfg(name, tag).get("quick_gelu", False))
    model_uses_quick_gelu = bool(_config(name).get("quick_gelu"))
    if weights_use_quick_gelu == model_uses_quick_gelu:
        return
    activation = "gelu"
    matching_name = name.removesuffix("-quickgelu")
    if weights_use_quick_gelu:
        activation = "quick_gelu"
        matching_name += "-quickgelu"
    raise UserError(
        f"Weights '{tag}' were trained with activation {activation}, which {name} does not use. "
        f"Use {matching_name}."
    )


def _require_weights_file(name: str, path: str) -> None:
    """Check that a path has the suffix of a weights file, or that the file exists. `load_clip` reads it.

    Raises:
        UserError: neither is the case, so `path` is probably a wrong tag.
    """
    file = Path(path)
    if file.suffix in {".pt", ".pth", ".bin", ".safetensors"} or file_size(file) is not None:
        return
    if name == "mini":
        raise UserError(
            f"mini contains its weights, so --pretrained {path} does not apply. Omit it, or also "
            "pass --backbone, such as ViT-B-16-quickgelu."
        )
    known_tags = ", ".join(tags_of(name)) or "none"
    raise UserError(
        f"'{path}' is neither a file nor an open_clip tag of {name}. "
        f"Use a .safetensors file or one of these tags: {known_tags}."
    )


def _weights_url(name: str, tag: str) -> str:
    """Return the URL of the .safetensors file that open_clip loads for a tag."""
    location = _open_clip().get_pretrained_cfg(name, tag).get("hf_hub", "")
    repository, _, file = location.rpartition("/")
    if not file:
        file = "open_clip_model.safetensors"
    return f"https://huggingface.co/{repository}/resolve/main/{file}"


def clip_without_weights(name: str) -> Clip:
    """Return a CLIP with the shapes of a model, on torch's `meta` device, to count FLOPs without weights."""
    return _build_clip(name, _describe_model(name).empty_state)


def _build_clip(name: str, state: Mapping[str, Tensor]) -> Clip:
    clip = from_state_dict(state, _describe_model(name).architecture)
    if clip.causal:
        return clip
    # Start tokens precede the first position at which these texts have different tokens.
    ids_NT = load_tokenizer(name)(["cat", "photo", "of", "many"])
    for position, ids in enumerate(ids_NT.T.tolist()):
        if len(set(ids)) > 1:
            return replace(clip, num_start=position)
    return replace(clip, num_start=0)


class _ModelDescription(NamedTuple):
    """A model without weights: its architecture, and its state dict on torch's `meta` device."""

    architecture: Architecture
    empty_state: Mapping[str, Tensor]


@lru_cache(maxsize=8)
def _describe_model(name: str) -> _ModelDescription:
    """Return the description of a supported model. Raise a UserError for other models."""
    config = _config(name)
    if name == "mini":
        architecture = clip_architecture(config)
        state = load_mini()
    else:
        is_siglip = _family(name, config) == "siglip"  # refuses other models before they are built
        with torch.device("meta"), suppress_logs():
            model = _open_clip().create_model(name, device="meta")
        architecture = siglip_architecture(config, model) if is_siglip else clip_architecture(config)
        state = model.state_dict()
    # SigLIP's `logit_bias` does not change softmax probabilities, so it is dropped.
    empty_state = {key: tensor.to("meta") for key, tensor in state.items() if key != "logit_bias"}
    return _ModelDescription(architecture, empty_state)


def clip_architecture(config: ModelConfig) -> Architecture:
    """Return the architecture of a CLIP whose towers are transformers as in OpenAI's models."""
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    activation = "quick_gelu" if config.get("quick_gelu") else "gelu"
    vision_heads = vision["width"] // vision.get("head_width", 64)
    return Architecture(
        vision_heads=vision_heads,
        text_heads=text["heads"],
        vision_activation=activation,
        text_activation=activation,
        image_size=vision["image_size"],
    )


def siglip_architecture(config: ModelConfig, model: Any) -> Architecture:
    """Return the architecture of a SigLIP. `model` is open_clip's model, with the image tower from timm."""
    text = config["text_cfg"]
    trunk = model.visual.trunk
    block = trunk.blocks[0]
    uses_tanh = "tanh" in repr(block.mlp.act).lower()
    return Architecture(
        vision_heads=block.attn.num_heads,
        text_heads=text["heads"],
        vision_activation="gelu_tanh" if uses_tanh else "gelu",
        text_activation="gelu_tanh" if text.get("act_kwargs") else "gelu",
        image_size=trunk.patch_embed.img_size[0],
        is_siglip=True,
    )


def _family(name: str, config: ModelConfig) -> Literal["clip", "siglip"]:
    """Return the family of a supported model. Raise a UserError for other models."""
    vision = config["vision_cfg"]
    text = config["text_cfg"]
    has_siglip_images = "_siglip_" in vision.get("timm_model_name", "")
    if has_siglip_images and text.keys() <= _SUPPORTED_SIGLIP_TEXT_KEYS:
        return "siglip"
    has_clip_keys = vision.keys() <= _SUPPORTED_CLIP_VISION_KEYS and text.keys() <= _SUPPORTED_CLIP_TEXT_KEYS
    if has_clip_keys and isinstance(vision["layers"], int):  # a list for ResNets
        return "clip"
    raise UserError(
        f"Backbone {name} is not supported. It is neither a CLIP with a vision transformer nor a SigLIP. "
        "Use a supported model, such as ViT-B-16-quickgelu (docs/data.md)."
    )


def _config(name: str) -> ModelConfig:
    if name == "mini":
        return mini_config()
    if ":" in name:  # such as hf-hub:...; open_clip would read code or weights from there
        raise UserError(f"Unknown backbone '{name}'. Use mini or an open_clip name, not a hub or folder.")
    config: ModelConfig | None = _open_clip().get_model_config(name)
    if config is None:
        start = name.lower()[:5]
        close = [model for model in _open_clip().list_models() if model.lower().startswith(start)]
        hint = "Use mini or an open_clip model."
        if close:
            hint = f"Did you mean {', '.join(close[:6])}?"
        raise UserError(f"Unknown backbone '{name}'. {hint}")
    return config
