"""Image towers of timm: plain vision transformers, whatever their names, told by what they consist of."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from prometar.clip.architecture import Unlike


def trunk_parts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `Architecture` that a timm image tower decides; it is built without memory for its weights.

    Raises:
        Unlike: it is another network than a plain vision transformer.
    """
    with torch.device("meta"):
        model = image_network(config)
    trunk: Any = model.trunk
    pool = _require_plain(trunk)
    _require_projection(model, trunk)
    block, size = trunk.blocks[0], trunk.patch_embed.img_size[0]
    after = isinstance(trunk.norm, nn.Identity)
    return {
        "activation": _activation(block.mlp.act),
        "vision_heads": block.attn.num_heads,
        "vision_eps": float((trunk.fc_norm if after else trunk.norm).eps),
        "trunk": True,
        "form": {
            "average": pool == "avg",
            "norm_after_pool": pool == "avg" and after,
            "image_size": size if size % trunk.patch_embed.patch_size[0] else None,
        },
    }


def image_network(config: Mapping[str, Any]) -> nn.Module:
    """open_clip's image tower, without weights."""
    from open_clip.model import _build_vision_tower

    vision = {**config["vision_cfg"], "timm_model_pretrained": False}
    network: nn.Module = _build_vision_tower(config["embed_dim"], vision)
    return network


def _require_plain(trunk: Any) -> str:
    """What must be so; returns how tokens are pooled."""
    kind = type(trunk).__name__
    blocks = {type(block).__name__ for block in getattr(trunk, "blocks", ())}
    if kind not in ("VisionTransformer", "Eva") or not blocks <= {"Block", "EvaBlock"}:
        raise Unlike(f"its image tower is timm's {kind}")
    embed = trunk.patch_embed
    if type(embed).__name__ != "PatchEmbed" or not isinstance(embed.norm, nn.Identity):
        raise Unlike("its image patches go through convolutions first")
    if getattr(trunk, "rope", None) is not None:
        raise Unlike("its image tower has rotary positions")
    for block in trunk.blocks:
        _require_plain_block(block)
    if trunk.pos_embed is None or trunk.pos_embed.shape[1] != embed.num_patches + trunk.num_prefix_tokens:
        raise Unlike("its class token has no position")
    if trunk.num_prefix_tokens != (trunk.cls_token is not None):
        raise Unlike("its image tower has registers")
    if trunk.global_pool not in ("token", "avg", "map") or getattr(trunk, "pool_include_prefix", False):
        raise Unlike(f"its image feature is pooled by '{trunk.global_pool}'")
    if trunk.global_pool == "map":
        _require_plain_pool(trunk.attn_pool)
    return str(trunk.global_pool)


def _require_plain_block(block: Any) -> None:
    if type(block.mlp).__name__ != "Mlp" or not isinstance(block.mlp.norm, nn.Identity):
        raise Unlike(f"its image tower's MLPs are {type(block.mlp).__name__}")
    norms = (block.attn.q_norm, block.attn.k_norm, block.attn.norm)
    plain = type(block.attn).__name__ in ("Attention", "EvaAttention")
    if not plain or not all(isinstance(norm, nn.Identity) for norm in norms):
        raise Unlike("its image tower's attention is another")
    if not isinstance(block.norm1, nn.LayerNorm) or getattr(block, "gamma_1", None) is not None:
        raise Unlike("its image tower's blocks are others")


def _require_plain_pool(pool: Any) -> None:
    one = pool.latent.shape[1] == 1 and pool.pos_embed is None and pool.pool == "token"
    if not one or not isinstance(pool.q, nn.Linear) or not isinstance(pool.q_norm, nn.Identity):
        raise Unlike("its attention pool is another")


def _require_projection(model: nn.Module, trunk: Any) -> None:
    head: Any = model.head
    names = [name for name, _ in head.named_children()]
    linear = "proj" in names and isinstance(trunk.head, nn.Identity) and head.proj.bias is None
    if names and not linear:
        raise Unlike("its image feature is projected by more than a matrix")


def _activation(act: nn.Module) -> str:
    if isinstance(act, nn.GELU):
        return "gelu" if act.approximate == "none" else "gelu_tanh"
    if type(act).__name__ == "GELUTanh":
        return "gelu_tanh"
    raise Unlike(f"its image tower's activation is {type(act).__name__}")
