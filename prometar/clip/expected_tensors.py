"""Which tensors a CLIP of an architecture consists of; checked once, where weights enter."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from prometar.bundled.weights import mini_shapes
from prometar.clip.architecture import Architecture
from prometar.clip.frozen import names
from prometar.clip.trunks import image_network
from prometar.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]
_LAYERS = ("transformer.resblocks.", "visual.transformer.resblocks.")


def expected_shapes(name: str, config: Mapping[str, Any], arch: Architecture) -> Shapes:
    """Every tensor's shape by its name in a file, the scale's last: those of open_clip's own towers.

    Raises:
        Unlike: as `trunk_parts`.
    """
    if name == "mini":  # without open_clip, which takes seconds to import
        return mini_shapes()
    from open_clip.model import _build_text_tower

    with torch.device("meta"):
        text = _build_text_tower(config["embed_dim"], config["text_cfg"])
        image = image_network(config)
    towers = _shapes("text." if arch.custom_text else "", text) | _shapes("visual.", image)
    return {**towers, "logit_scale": ()}


def _shapes(tower: str, network: nn.Module) -> dict[str, tuple[int, ...]]:
    state = network.state_dict()
    return {f"{tower}{name}": tuple(state[name].shape) for name in names(network)}


def in_our_names(arch: Architecture, shapes: Shapes, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The expected tensors of a file, by the names and in the shapes of `prometar.clip.model`."""
    found = dict[str, Tensor]()
    for in_file in shapes:
        name, tensor = _our_name(arch, in_file), state[in_file]
        if name == "visual.class_embedding":  # timm's has axes of images and tokens
            tensor = tensor.flatten()
        if name == "visual.positional_embedding":
            tensor = tensor.flatten(0, -2)
        is_matrix = name in _PROJECTIONS and in_file.endswith(".weight")
        found[name] = tensor.T if is_matrix else tensor
    for weight in [name for name in found if name.endswith("attn.in_proj_weight")]:
        stem = weight.removesuffix("in_proj_weight")
        if weight.startswith("visual.transformer.") and f"{stem}in_proj_bias" not in found:
            nothing = torch.zeros_like(found[weight][: found[weight].shape[1], 0])
            query, value = (found.pop(f"{stem}{part}_bias", nothing) for part in "qv")
            found[f"{stem}in_proj_bias"] = torch.cat([query, nothing, value])
    return found


_PROJECTIONS = ("text_projection", "visual.proj")
_OF_TIMM = (
    ("visual.trunk.patch_embed.proj", "visual.conv1"), ("visual.trunk.cls_token", "visual.class_embedding"),
    ("visual.trunk.pos_embed", "visual.positional_embedding"), ("visual.trunk.norm_pre", "visual.ln_pre"),
    ("visual.trunk.blocks", "visual.transformer.resblocks"), ("visual.trunk.attn_pool", "visual.attn_pool"),
    ("visual.trunk.norm.", "visual.ln_post."), ("visual.trunk.fc_norm.", "visual.ln_post."),
    ("visual.trunk.head.", "visual.proj."), ("visual.head.proj.", "visual.proj."),
    (".norm1.", ".ln_1."), (".norm2.", ".ln_2."), (".attn.qkv.", ".attn.in_proj_"),
    (".attn.proj.", ".attn.out_proj."), (".mlp.fc1.", ".mlp.c_fc."), (".mlp.fc2.", ".mlp.c_proj."),
    (".ls1.", ".ls_1."), (".ls2.", ".ls_2."),
)  # fmt: skip
"""Parts of timm's names, and what they are in OpenAI's."""


def _our_name(arch: Architecture, name: str) -> str:
    """That of OpenAI, where it has such a tensor."""
    if arch.custom_text:
        name = name.removeprefix("text.")
    if arch.trunk and name.startswith("visual."):
        for theirs, ours in _OF_TIMM:
            name = name.replace(theirs, ours)
    for projection in _PROJECTIONS:
        if name.startswith(f"{projection}."):
            return projection if name.endswith(".weight") else f"{projection}_bias"
    return name


def require_tensors(shapes: Shapes, state: Mapping[str, Tensor], *, where: str) -> None:
    """Raises a UserError where a tensor is missing, too many, of another shape, integral, or not finite."""
    for name, shape in shapes.items():
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
    for name in state:  # of a deeper model, the first layers would fit
        if name not in shapes and name.startswith(_LAYERS):
            raise UserError(f"{where} does not fit: it has '{name}', the model has not")


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity; no mask of its size is made."""
    if tensor.numel() == 0:
        return True
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor.detach()))).all())
