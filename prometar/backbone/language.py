"""A text tower that is a language model of `transformers`, as it is, with prompts among its tokens.

Nothing of it is rewritten, so that its derivatives are torch's own. Padding behind the longest text is cut:
nothing attends to it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from prometar.backbone.architecture import Unlike
from prometar.backbone.frozen import Frozen, tensors_of
from prometar.errors import UserError
from prometar.io.hub import fetching

Put = Callable[[Tensor, Tensor], Tensor]
"""Tokens (C, T, D) and a prompt (P, D) to tokens with the prompt among them."""

COPY_CACHE = "run the command once on a machine with a network, and copy its Hugging Face cache"
_LAYERS = {
    "roberta": "encoder.layer", "xlm-roberta": "encoder.layer", "bert": "encoder.layer",
    "mt5": "block", "m2m_100": "layers",
}  # fmt: skip
"""Where the layers stand in each kind of model that open_clip knows."""

_OF_NO_MATTER = {"transformers_version", "_name_or_path"}


class _Prompted(nn.Module):
    """open_clip's text tower from embedded tokens (C, T, D) on."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder
        for norm in encoder.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.forward = partial(_normed, norm)  # type: ignore[method-assign]

    @property
    def layers(self) -> Sequence[nn.Module]:
        transformer = self.encoder.transformer
        found: Any = transformer.get_submodule(_LAYERS[transformer.config.model_type])
        return list(found)

    def forward(self, x_CTD: Tensor, seen_CT: Tensor, prompts: Mapping[int, Tensor], put: Put) -> Tensor:
        transformer, layers = self.encoder.transformer, self.layers
        seen = seen_CT[:, None, None].expand(-1, 1, x_CTD.shape[1], -1)
        if getattr(transformer.config, "is_decoder", False):
            seen = seen.tril()
        mask = torch.zeros(seen.shape, dtype=x_CTD.dtype, device=x_CTD.device)
        mask = mask.masked_fill(~seen, float("-inf"))
        with ExitStack() as hooks:
            for number, prompt in prompts.items():
                if number == 0:
                    x_CTD = put(x_CTD, prompt)
                    continue

                def enter(_: nn.Module, given: tuple[Any, ...], prompt: Tensor = prompt) -> tuple[Any, ...]:
                    return put(given[0], prompt), *given[1:]

                hooks.callback(layers[number].register_forward_pre_hook(enter).remove)
            out = transformer(inputs_embeds=x_CTD, attention_mask=mask)
        return self.encoder.proj(self.encoder.pooler(out, seen_CT.to(x_CTD.dtype)))


def _normed(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """LayerNorm, in float32 where float16 is too narrow for its second derivative, as in our own towers."""
    wide = x.float() if x.dtype is torch.float16 else x
    weight, bias = norm.weight.to(wide.dtype), norm.bias.to(wide.dtype)
    return F.layer_norm(wide, norm.normalized_shape, weight, bias, norm.eps).to(x.dtype)


@dataclass(frozen=True)
class Language(Frozen):
    """A frozen text tower (`_Prompted`).

    width: of a token, embed_dim: of a feature, pad: the token that stands behind texts.
    """

    width: int
    embed_dim: int
    pad: int

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Its layers, each of which takes a prompt."""
        assert isinstance(self.network, _Prompted)
        return self.network.layers

    @property
    def description(self) -> str:
        """All that its features depend on but its tensors."""
        encoder: Any = self.network.encoder
        config = encoder.transformer.config.to_diff_dict()
        told = {key: value for key, value in config.items() if key not in _OF_NO_MATTER}
        return f"{self.network}\n{json.dumps(told, sort_keys=True, default=str)}"

    def __call__(
        self, embedded_CTD: Tensor, seen_CT: Tensor, prompts: Mapping[int, Tensor], put: Put
    ) -> Tensor:
        """Un-normalised features (C, E) of embedded tokens, with prompts in place of some."""
        return functional_call(self.network, dict(self.tensors), (embedded_CTD, seen_CT, prompts, put))

    def folded(self) -> "Language":
        return self


def language(network: nn.Module, state: Mapping[str, Tensor]) -> tuple[Language, Tensor]:
    """`text_network` with the tensors of its state dict, and its table of tokens (V, D)."""
    encoder: Any = network
    tokens: Any = encoder.transformer.get_input_embeddings()
    table = next(f"{name}.weight" for name, module in network.named_modules() if module is tokens)
    found = tensors_of(network, state)
    scaled = found.pop(table) * getattr(tokens, "embed_scale", 1.0)
    prompted = _Prompted(network.eval().requires_grad_(False)).to("meta")  # the numbers are in `tensors`
    tensors = {f"encoder.{name}": tensor for name, tensor in found.items()}
    pad = encoder.transformer.config.pad_token_id
    return Language(prompted, tensors, scaled.shape[1], encoder.output_dim, pad), scaled


def text_network(name: str, config: Mapping[str, Any]) -> nn.Module:
    """open_clip's text tower, without weights; of a model of the hub the description alone is read, no code.

    Raises:
        Unlike: it is of a kind that open_clip does not know. UserError: `transformers` is missing.
        WorkError: the description could not be fetched.
    """
    from open_clip.model import _build_text_tower

    text = {**config["text_cfg"], "hf_model_pretrained": False}
    theirs = text.get("hf_model_name")
    if not theirs:
        return _build_text_tower(config["embed_dim"], text)
    require_transformers(name, config)
    from transformers import AutoConfig

    description = f"the description of {theirs}, the language model of {name}"
    with fetching(description, COPY_CACHE):
        kind = AutoConfig.from_pretrained(theirs, trust_remote_code=False).model_type
    if kind not in _LAYERS:
        raise Unlike(f"its text tower is a {kind}, which open_clip does not know")
    with fetching(description, COPY_CACHE):
        network: Any = _build_text_tower(config["embed_dim"], text)
    network.transformer.set_attn_implementation("eager")  # fused kernels have no second derivative
    network.transformer.config.use_cache = False
    return network


def require_transformers(name: str, config: Mapping[str, Any]) -> None:
    """Raises a UserError where texts are read with what `transformers` has, and it is not installed."""
    text = config["text_cfg"]
    theirs = text.get("hf_model_name") or text.get("hf_tokenizer_name")
    if theirs and find_spec("transformers") is None:
        raise UserError(
            f"backbone {name} reads texts with {theirs}, which needs transformers: "
            "pip install '.[transformers]'"
        )
