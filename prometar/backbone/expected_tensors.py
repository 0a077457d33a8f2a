"""Which tensors a CLIP of an architecture consists of; checked once, where weights enter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from prometar.backbone.architecture import Architecture
from prometar.errors import UserError

Shapes = dict[str, tuple[int, ...]]


class Entry(NamedTuple):
    """A tensor as it lies in a file, and whether it is read transposed."""

    name: str
    shape: tuple[int, ...]
    transposed: bool = False


def entries(arch: Architecture) -> dict[str, Entry]:
    """Every tensor but the scale, by our names: those of OpenAI, where it has such a tensor."""
    shapes = dict(arch.language_shapes) if arch.language else _text(arch)
    text = {name: Entry(name, shape) for name, shape in shapes.items()}
    if not arch.language:
        text |= _projection("text_projection", arch.text_projection, arch.text_width, arch.embed_dim)
    if arch.custom_text:
        text = {name: entry._replace(name=f"text.{entry.name}") for name, entry in text.items()}
    if arch.closed:
        return text | {f"visual.{name}": Entry(f"visual.{name}", shape) for name, shape in arch.closed_shapes}
    vision = {name: Entry(name, shape) for name, shape in _vision(arch).items()}
    pooled = arch.embed_dim if arch.pool_queries else arch.vision_width
    vision |= _projection("visual.proj", arch.vision_projection, pooled, arch.embed_dim)
    if arch.trunk:
        vision = {name: _in_trunk(arch, entry) for name, entry in vision.items()}
    return text | vision


def expected_shapes(arch: Architecture) -> Shapes:
    """Every tensor's shape but the scale's, by the names in a file."""
    return {entry.name: entry.shape for entry in entries(arch).values()}


def in_our_names(arch: Architecture, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, by the names and in the shapes of `prometar.backbone.clip.from_state_dict`."""
    found = {"logit_scale": state["logit_scale"]}
    for name, (in_file, _, transposed) in entries(arch).items():
        tensor = state[in_file]
        if name in ("visual.class_embedding", "visual.positional_embedding") and arch.trunk:
            tensor = tensor.flatten(0, -2) if name.endswith("positional_embedding") else tensor.flatten()
        found[name] = tensor.T if transposed else tensor
    for layer in range(arch.vision_layers if arch.qkv_bias != "qkv" else 0):
        stem = f"visual.transformer.resblocks.{layer}.attn"
        nothing = torch.zeros_like(found[f"{stem}.in_proj_weight"][: arch.vision_width, 0])
        query, value = (found.pop(f"{stem}.{part}_bias", nothing) for part in "qv")
        found[f"{stem}.in_proj_bias"] = torch.cat([query, nothing, value])
    return found


def _text(arch: Architecture) -> Shapes:
    width = arch.text_width
    return {
        "token_embedding.weight": (arch.vocabulary, width),
        "positional_embedding": (arch.context_length + arch.form.summary, width),
        **({"cls_emb": (width,)} if arch.form.summary else {}),
        **_norm("ln_final", width),
        **_tower("transformer", width, arch.text_hidden, arch.text_layers, scaled=arch.text_layer_scale),
    }


def _vision(arch: Architecture) -> Shapes:
    width, hidden = arch.vision_width, arch.vision_hidden
    positions = (arch.image_size // arch.patch_size) ** 2 + arch.class_token
    found: Shapes = {"visual.conv1.weight": (width, 3, arch.patch_size, arch.patch_size)}
    if arch.patch_bias:
        found["visual.conv1.bias"] = (width,)
    if arch.class_token:
        found["visual.class_embedding"] = (width,)
    found["visual.positional_embedding"] = (positions, width)
    if arch.ln_pre:
        found |= _norm("visual.ln_pre", width)
    found |= _norm("visual.ln_post", arch.embed_dim if arch.pool_queries else width)
    found |= _tower(
        "visual.transformer",
        width,
        hidden,
        arch.vision_layers,
        scaled=arch.vision_layer_scale,
        bias=arch.qkv_bias,
    )
    if arch.pool_queries:
        found |= _query_pool("visual.attn_pool", arch)
    if arch.attention_pool:
        pool = "visual.attn_pool"
        found |= {f"{pool}.latent": (1, 1, width)} | _linear(f"{pool}.q", width, width)
        found |= _linear(f"{pool}.kv", width, 2 * width) | _linear(f"{pool}.proj", width, width)
        found |= _norm(f"{pool}.norm", width)
        found |= _linear(f"{pool}.mlp.fc1", width, hidden) | _linear(f"{pool}.mlp.fc2", hidden, width)
    return found


def _query_pool(name: str, arch: Architecture) -> Shapes:
    """open_clip's own attention pool."""
    width, out = arch.vision_width, arch.embed_dim
    found: Shapes = {f"{name}.query": (arch.pool_queries, out), f"{name}.attn.in_proj_bias": (3 * out,)}
    if width == out:
        found[f"{name}.attn.in_proj_weight"] = (3 * out, out)
    else:
        for part, size in (("q", out), ("k", width), ("v", width)):
            found[f"{name}.attn.{part}_proj_weight"] = (out, size)
    found |= _linear(f"{name}.attn.out_proj", out, out)
    return found | _norm(f"{name}.ln_q", out) | _norm(f"{name}.ln_k", width)


def _projection(name: str, kind: str, width: int, out: int) -> dict[str, Entry]:
    if kind == "none":
        return {}
    if kind == "matrix":
        return {name: Entry(name, (width, out))}
    found = {name: Entry(f"{name}.weight", (out, width), transposed=True)}
    if kind == "bias":
        found[f"{name}_bias"] = Entry(f"{name}.bias", (out,))
    return found


def _norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, width: int, out: int) -> Shapes:
    return {f"{name}.weight": (out, width), f"{name}.bias": (out,)}


def _tower(name: str, width: int, hidden: int, layers: int, *, scaled: bool, bias: str = "qkv") -> Shapes:
    found: Shapes = {}
    for layer in range(layers):
        stem = f"{name}.resblocks.{layer}"
        found |= _norm(f"{stem}.ln_1", width) | _norm(f"{stem}.ln_2", width)
        found[f"{stem}.attn.in_proj_weight"] = (3 * width, width)
        if bias == "qkv":
            found[f"{stem}.attn.in_proj_bias"] = (3 * width,)
        elif bias == "qv":
            found |= {f"{stem}.attn.q_bias": (width,), f"{stem}.attn.v_bias": (width,)}
        found |= _linear(f"{stem}.attn.out_proj", width, width)
        found |= _linear(f"{stem}.mlp.c_fc", width, hidden) | _linear(f"{stem}.mlp.c_proj", hidden, width)
        if scaled:
            found |= {f"{stem}.ls_1.gamma": (width,), f"{stem}.ls_2.gamma": (width,)}
    return found


_IN_TRUNK = (
    ("visual.conv1", "visual.trunk.patch_embed.proj"), ("visual.class_embedding", "visual.trunk.cls_token"),
    ("visual.positional_embedding", "visual.trunk.pos_embed"), ("visual.ln_pre", "visual.trunk.norm_pre"),
    ("visual.transformer.resblocks", "visual.trunk.blocks"), (".ln_1", ".norm1"), (".ln_2", ".norm2"),
    (".in_proj_", ".qkv."), (".out_proj", ".proj"), (".c_fc", ".fc1"), (".c_proj", ".fc2"),
    (".ls_1", ".ls1"), (".ls_2", ".ls2"), ("visual.attn_pool", "visual.trunk.attn_pool"),
)  # fmt: skip
"""Parts of OpenAI's names, and what timm calls them."""


def _in_trunk(arch: Architecture, entry: Entry) -> Entry:
    name, shape, transposed = entry
    if name.startswith("visual.proj."):
        # open_clip's own layer, or, with a bias, the head of timm's model.
        head = "visual.trunk.head" if arch.vision_projection == "bias" else "visual.head.proj"
        return entry._replace(name=name.replace("visual.proj", head))
    if name == "visual.class_embedding":
        shape = (1, 1, *shape)
    if name == "visual.positional_embedding":
        shape = (1, *shape)
    for ours, theirs in (*_IN_TRUNK, ("visual.ln_post", f"visual.trunk.{arch.trunk_norm}")):
        name = name.replace(ours, theirs)
    return Entry(name, shape, transposed)


def require_tensors(arch: Architecture, state: Mapping[str, Tensor], *, where: str) -> None:
    """Raises a UserError where a tensor is missing, of another shape, of whole numbers, or not finite."""
    for name, shape in (expected_shapes(arch) | {"logit_scale": ()}).items():
        tensor = state.get(name)
        if tensor is None:
            raise UserError(f"{where} has no '{name}': no CLIP with a ViT and a text transformer")
        # Some files keep the scale as a vector of one.
        found = () if name == "logit_scale" and tensor.numel() == 1 else tuple(tensor.shape)
        if found != shape:
            raise UserError(f"{where} does not fit: '{name}' is {found}, the model's is {shape}")
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(f"{where}: '{name}' is {kind}: quantised weights are not read")
        if not all_finite(tensor.exp() if name == "logit_scale" else tensor):
            raise UserError(f"{where}: '{name}' holds values that are not finite: the file is damaged")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; no mask of its size is made."""
    if tensor.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
