"""Frozen weights: read safetensors files, check their tensors, and convert them to a `Clip`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prometar.clip.function import EPS
from prometar.clip.model import Block, Clip, Tower, tensors_of
from prometar.errors import InfrastructureError, UserError, first_line
from prometar.io.files import file_size

StateDict = Mapping[str, Tensor]


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name. For errors, see `read_tensors`."""
    fix = "Set backbone.pretrained (--pretrained) to an existing .safetensors file."
    if path.suffix != ".safetensors" and path.is_file():
        load_code = f"state = torch.jit.load({str(path)!r}, 'cpu').state_dict()"
        save_code = f"safetensors.torch.save_file(state, {str(path.with_suffix('.safetensors'))!r})"
        fix = f"Convert it with `{load_code}` (or torch.load if it contains a state dict) and `{save_code}`."
    return read_tensors(path, fix)[0]


def read_tensors(path: Path, fix: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file.

    Args:
        fix: Last sentence of the messages, unless the file cannot be read.

    Raises:
        UserError: the file does not exist, or is not a safetensors file.
        InfrastructureError: the file cannot be read.
    """
    if file_size(path) is None:
        raise UserError(f"{path} does not exist. {fix}")
    try:
        path.open("rb").close()  # unlike safe_open, names the reason if the file cannot be read
        with safe_open(path, framework="pt") as file:
            # Clones are aligned. With unaligned memory, kernels may sum in a different order.
            tensors = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
            return tensors, file.metadata() or {}
    except OSError as error:
        raise InfrastructureError(f"Cannot read {path}: {error.strerror or error}.") from None
    except SafetensorError as error:
        raise UserError(f"{path} is not a .safetensors file ({first_line(error)}). {fix}") from None


def require_tensors(expected: StateDict, state: StateDict, *, source: str) -> None:
    """Check that weights fit the backbone and are finite.

    Args:
        expected: Tensors of the backbone. Shapes are compared, and whether data types are floating-point.
        state: Weights. Tensors that the backbone lacks are ignored, unless they are blocks of a deeper model.
        source: Name of the weights in messages.

    Raises:
        UserError: a tensor is missing, not finite, of another shape or kind, or of an extra block.
    """
    found = {name: tensor for name, tensor in state.items() if name in expected or "blocks." in name}
    scale = found.get("logit_scale")
    if scale is not None and scale.numel() == 1:
        found["logit_scale"] = scale.reshape(())  # some files store a vector of length 1
    problem = describe_mismatch(expected, found)
    if problem:
        raise UserError(f"{source} does not fit the backbone or is corrupt: {problem}. Use weights that fit.")


def describe_mismatch(expected: StateDict, found: StateDict) -> str:
    """Describe the first tensor that does not match `expected` or is not finite ("" if there is none)."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected:
            return f"{name} is unexpected"
        wanted = _describe(expected[name])
        actual = _describe(found.get(name))
        if actual != wanted:
            return f"{name} is {actual}, expected {wanted}"
    for name, tensor in found.items():
        if not _is_finite(tensor):
            return f"{name} is not finite"
    return ""


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.numel():
        return True
    # torch.isfinite(tensor) would allocate a mask as large as the tensor.
    lowest, highest = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(lowest) and torch.isfinite(highest))


def _describe(tensor: Tensor | None) -> str:
    """Describe data type and shape. All floats are alike, because weights are converted when used."""
    if tensor is None:
        return "missing"
    kind = "float" if tensor.is_floating_point() else str(tensor.dtype)
    return f"{kind} {tuple(tensor.shape)}"


def weights_digest(clip: Clip) -> str:
    """Return the SHA-256 (hex) of the float32 weights and of each tower's head count, activation and eps."""
    digest = hashlib.sha256()
    for field in fields(clip):
        value = getattr(clip, field.name)
        if isinstance(value, Tower):
            digest.update(f"{value.num_heads} {value.activation}".encode())
            if value.eps != EPS:  # so that CLIP's digests stay as they were before towers had `eps`
                digest.update(f" {value.eps}".encode())
        for tensor in tensors_of(value):  # none for flags, numbers and None
            array = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous().numpy()
            digest.update(str(array.shape).encode())
            digest.update(np.ascontiguousarray(array, dtype="<f4").data)
    return digest.hexdigest()


@dataclass(frozen=True)
class Architecture:
    """Properties of a CLIP or SigLIP model that its state dict does not contain."""

    vision_heads: int
    text_heads: int
    vision_activation: str
    text_activation: str
    image_size: int
    is_siglip: bool = False


def from_state_dict(state: StateDict, arch: Architecture) -> Clip:
    """Convert an open_clip state dict to a `Clip` in float32, or in float64 if any tensor is float64."""
    floats = (tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    dtype = reduce(torch.promote_types, floats, torch.float32)
    state = {name: tensor.detach().to(dtype) for name, tensor in state.items()}
    if arch.is_siglip:
        state = _to_openai_layout(state)
    eps = 1e-6 if arch.is_siglip else EPS
    # SigLIP's `ln_post` belongs to its attention pool (`_attention_pool`).
    ln_post_weight = None if arch.is_siglip else state.get("visual.ln_post.weight")
    ln_post_bias = None if arch.is_siglip else state.get("visual.ln_post.bias")
    positions = state["visual.positional_embedding"]
    bias = state.get("visual.conv1.bias")
    if bias is not None:
        # Added to the positions instead of by the convolution. Models with this bias (SigLIP) have no class
        # token, so every position is a patch.
        positions = positions + bias
    return Clip(
        text=_tower(state, "transformer", arch.text_heads, arch.text_activation, eps),
        vision=_tower(state, "visual.transformer", arch.vision_heads, arch.vision_activation, eps),
        token_embedding=state["token_embedding.weight"],
        text_positions=state["positional_embedding"],
        ln_final_weight=state["ln_final.weight"],
        ln_final_bias=state["ln_final.bias"],
        text_projection=state.get("text_projection"),
        patch_weight=state["visual.conv1.weight"],
        class_embedding=state.get("visual.class_embedding"),
        vision_positions=positions,
        ln_pre_weight=state.get("visual.ln_pre.weight"),
        ln_pre_bias=state.get("visual.ln_pre.bias"),
        ln_post_weight=ln_post_weight,
        ln_post_bias=ln_post_bias,
        vision_projection=state.get("visual.proj"),
        # Computed in float64, so that the rounded value, and hence the digest, do not depend on the CPU.
        logit_scale=state["logit_scale"].double().exp().to(dtype).reshape(()),
        text_projection_bias=state.get("text_projection.bias"),
        pool=_attention_pool(state, arch, eps) if arch.is_siglip else None,
        causal=not arch.is_siglip,
        image_size=arch.image_size,
    )


_TIMM_NAMES = (
    (".trunk.patch_embed.proj", ".conv1"),
    (".trunk.pos_embed", ".positional_embedding"),
    (".trunk.blocks", ".transformer.resblocks"),
    (".trunk.attn_pool", ".attn_pool"),
    (".trunk.norm.", ".ln_post."),
    (".norm1.", ".ln_1."),
    (".norm2.", ".ln_2."),
    (".attn.qkv.", ".attn.in_proj_"),
    (".attn.proj.", ".attn.out_proj."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
"""Parts of timm's tensor names, and their replacements in OpenAI's names."""


def _to_openai_layout(state: StateDict) -> dict[str, Tensor]:
    """Convert SigLIP's tensors to OpenAI's names and shapes."""
    renamed = {}
    for name, tensor in state.items():
        name = name.removeprefix("text.")
        for timm, openai in _TIMM_NAMES:
            name = name.replace(timm, openai)
        renamed[name] = tensor
    if "text_projection.weight" in renamed:  # a linear layer (out, in), while OpenAI's matrix is (in, out)
        renamed["text_projection"] = renamed["text_projection.weight"].T
    # timm has a leading dimension of length 1, for the batch.
    renamed["visual.positional_embedding"] = renamed["visual.positional_embedding"].flatten(0, -2)
    return renamed


_BLOCK_KEYS = (  # in the order of the fields of `Block`
    "ln_1.weight",
    "ln_1.bias",
    "attn.in_proj_weight",
    "attn.in_proj_bias",
    "attn.out_proj.weight",
    "attn.out_proj.bias",
    "ln_2.weight",
    "ln_2.bias",
    "mlp.c_fc.weight",
    "mlp.c_fc.bias",
    "mlp.c_proj.weight",
    "mlp.c_proj.bias",
)


def _tower(state: StateDict, prefix: str, num_heads: int, activation: str, eps: float) -> Tower:
    stem = f"{prefix}.resblocks."
    names = [name.removeprefix(stem) for name in state if name.startswith(stem)]  # such as 0.ln_1.weight
    last_index = max(int(name.split(".")[0]) for name in names)
    blocks = tuple(_block(state, f"{stem}{index}.") for index in range(last_index + 1))
    scale = (blocks[0].out_proj_bias.shape[0] // num_heads) ** -0.5
    return Tower(blocks, num_heads, activation, scale, eps)


def _block(state: StateDict, stem: str) -> Block:
    """Return the block whose tensors have names that start with `stem`."""
    tensors = [state[f"{stem}{key}"] for key in _BLOCK_KEYS]
    return Block(*tensors)


def _attention_pool(state: StateDict, arch: Architecture, eps: float) -> Tower:
    """Return SigLIP's attention pool as a tower of one block, whose attention has no residual connection.

    SigLIP computes one query from a learned vector (`latent`), not from the tokens. So the weights of the
    block's query projection are zero, and its bias is the query.
    """
    pool = {name.removeprefix("visual.attn_pool."): tensor for name, tensor in state.items()}
    kv_weight = pool["kv.weight"]
    # Computed in float64 for the same reason as the logit scale in `from_state_dict`.
    projected = F.linear(pool["latent"].double(), pool["q.weight"].double(), pool["q.bias"].double())
    query = projected.flatten(0, -2)[0].to(kv_weight.dtype)
    block = Block(
        ln_1_weight=state["visual.ln_post.weight"],
        ln_1_bias=state["visual.ln_post.bias"],
        in_proj_weight=torch.cat([torch.zeros_like(kv_weight[: len(query)]), kv_weight]),
        in_proj_bias=torch.cat([query, pool["kv.bias"]]),
        out_proj_weight=pool["proj.weight"],
        out_proj_bias=pool["proj.bias"],
        ln_2_weight=pool["norm.weight"],
        ln_2_bias=pool["norm.bias"],
        c_fc_weight=pool["mlp.c_fc.weight"],
        c_fc_bias=pool["mlp.c_fc.bias"],
        c_proj_weight=pool["mlp.c_proj.weight"],
        c_proj_bias=pool["mlp.c_proj.bias"],
    )
    scale = (len(query) // arch.vision_heads) ** -0.5
    return Tower((block,), arch.vision_heads, arch.vision_activation, scale, eps, residual=False)
