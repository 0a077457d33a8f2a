"""Towers as plain functions that autograd differentiates.

They cover the cases for which `prometar.clip.tower` has no hand-written derivatives: tokens per class, tokens
that are inserted in a middle layer, and changed blocks.

By default, autograd can only compute first derivatives, because attention is torch's fused operation. With
`differentiable_twice=True`, it can also compute second derivatives, and attention is not fused.

Shapes: B images, C classes, R rows of T tokens, P prompt tokens, S keys, H heads of width W, towers of width
D, features of width E. A suffix such as `_RTD` states the shape of a tensor.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.activations import ACTIVATIONS, QUICK_GELU_FACTOR
from prometar.clip.attention import fused_attention, num_shared_keys
from prometar.clip.model import Block, Clip, Tower
from prometar.clip.text import TextInput
from prometar.clip.vision import ImageTokens

ChangeBlock = Callable[[int, Block], Block]
"""Function that maps a block's index in its tower and its frozen weights to the weights to use."""

Parallel = Callable[[int, Tensor], Tensor | None]
"""Function that maps a block's index and normed input (rows, tokens, D) to what is added to its output.

The normed input is the input after the block's first LayerNorm. None: nothing is added.
"""


def _keep(index: int, block: Block) -> Block:
    return block


def _add_nothing(index: int, normed: Tensor) -> None:
    return None


def adapted_text(
    clip: Clip,
    text: TextInput,
    tokens: Mapping[int, Tensor],
    *,
    inserts: bool = False,
    change_block: ChangeBlock = _keep,
    parallel: Parallel = _add_nothing,
    differentiable_twice: bool = False,
) -> Tensor:
    """Return unnormalized text features (C, E).

    Args:
        clip: Frozen CLIP. Must not be folded (`Clip.folded`) if `change_block` or `parallel` is given.
        text: Texts of the classes. Must not be packed (`TextInput.is_packed`) if tokens depend on the class.
            Blocks before `text.block` are omitted.
        tokens: Tokens by layer, from 0: (P, D), or (C, P, D) for C classes.
        inserts: True: the texts have no context tokens, and `tokens` are inserted as they are. False:
            `tokens` replace the context tokens. In layer 0, position embeddings are added to `tokens`.
        change_block: Returns the weights of a block. Default: the frozen weights.
        parallel: Returns what is added to the output of a block. Default: nothing is added.
        differentiable_twice: True if second derivatives are needed.
    """
    tower = clip.text
    last_index = len(tower.blocks) - 1
    first_layer_with_tokens = min(tokens, default=len(tower.blocks))
    x = text.embedded_RTD
    for index in range(text.block, len(tower.blocks)):
        if index in tokens:
            prompt = tokens[index]
            if index == 0 and not inserts:
                prompt = prompt + clip.text_positions[text.num_start : text.num_start + text.num_context]
            x = _put_text(text, x, prompt)
        context_is_missing = inserts and index < first_layer_with_tokens
        x = _block(
            tower,
            change_block(index, tower.blocks[index]),
            x,
            mask=text.mask_before_R1TS if context_is_missing else text.mask_R1TS,
            out=_text_output(text) if index == last_index else None,
            parallel=partial(parallel, index),
            differentiable_twice=differentiable_twice,
        )
    features = F.layer_norm(
        x.flatten(0, 1), x.shape[-1:], clip.ln_final_weight, clip.ln_final_bias, tower.eps
    )
    if clip.text_projection is None:
        return features
    projected = features @ clip.text_projection
    if clip.text_projection_bias is None:
        return projected
    return projected + clip.text_projection_bias


def _put_text(text: TextInput, x_RTD: Tensor, prompt: Tensor) -> Tensor:
    """Return the rows with the prompt, (P, D) or (R, P, D), in the slots of the context.

    If texts are packed, only row 0 has a context.
    """
    start = text.context_start
    if text.is_packed:
        return torch.cat([_put_tokens(x_RTD[:1], prompt, start), x_RTD[1:]], dim=0)
    return _put_tokens(x_RTD, prompt, start)


def _put_tokens(x_RTD: Tensor, prompt: Tensor, start: int) -> Tensor:
    """Return the rows with the prompt in the slots from `start` on.

    The first prompt that is inserted into SigLIP's rows is appended: the rows end at `start`, and the slice
    behind the prompt is empty.
    """
    stop = start + prompt.shape[-2]
    prompts = prompt.expand(len(x_RTD), -1, -1)
    return torch.cat([x_RTD[:, :start], prompts, x_RTD[:, stop:]], dim=1)


def _text_output(text: TextInput) -> int | Tensor:
    """Return the tokens whose outputs are the text features, as `out` of `_block`."""
    if text.end_C is None:  # SigLIP: the first token of each row
        return 1
    return text.end_C


def adapted_image(
    clip: Clip,
    images: ImageTokens,
    prompts: Mapping[int, Tensor],
    *,
    skips_ln_pre: bool = False,
    change_block: ChangeBlock = _keep,
    parallel: Parallel = _add_nothing,
    reads_prompts: bool = False,
    differentiable_twice: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return unnormalized image features (B, E), and the mean output of the prompts (B, D) if it is read.

    Args:
        clip: Frozen CLIP. Must not be folded (`Clip.folded`) if `change_block` or `parallel` is given.
        images: Tokens of the images. Blocks before `images.block` are omitted.
        prompts: Prompts (P, D) by layer, from 0. They follow the image tokens, and replace earlier prompts.
        skips_ln_pre: True if the prompts of layer 0 enter the first block without `ln_pre`.
        change_block: Returns the weights of a block. Default: the frozen weights.
        parallel: Returns what is added to the output of a block. Default: nothing is added.
        reads_prompts: True to return the mean of the last block's outputs at the prompts, after `ln_post`.
            Requires prompts, and a tower without attention pooling.
        differentiable_twice: True if second derivatives are needed.
    """
    # Without outputs at prompts, their mean would be NaN. Settings that lead here are refused earlier.
    assert not reads_prompts or (prompts and clip.pool is None), "there are no outputs at prompts to read"
    tower = clip.vision
    last_index = len(tower.blocks) - 1
    num_images, num_tokens = images.tokens_BTD.shape[:2]
    last_out: int | Tensor = 1  # the class token
    if clip.pool is not None:
        last_out = num_tokens  # attention pooling reads all image tokens, but no prompts
    elif reads_prompts:
        num_prompts = prompts[max(prompts)].shape[-2]
        # Each row has the image tokens, then the prompts. Output its class token and its prompts.
        first_slots_B1 = torch.arange(num_images, device=clip.device)[:, None] * (num_tokens + num_prompts)
        prompt_slots_P = torch.arange(num_tokens, num_tokens + num_prompts, device=clip.device)
        last_out = torch.cat([first_slots_B1, first_slots_B1 + prompt_slots_P], dim=1).flatten()
    x = images.tokens_BTD
    for index in range(images.block, len(tower.blocks)):
        if index in prompts:
            prompt = prompts[index]
            if index == 0 and not skips_ln_pre and clip.ln_pre_weight is not None:
                width = prompt.shape[-1:]
                prompt = F.layer_norm(prompt, width, clip.ln_pre_weight, clip.ln_pre_bias, tower.eps)
            x = torch.cat([x[:, :num_tokens], prompt.expand(num_images, -1, -1)], dim=1)
        x = _block(
            tower,
            change_block(index, tower.blocks[index]),
            x,
            out=last_out if index == last_index else None,
            parallel=partial(parallel, index),
            differentiable_twice=differentiable_twice,
        )
    if clip.pool is not None:
        x = _block(
            clip.pool,
            clip.pool.blocks[0],
            x,
            out=1,
            parallel=lambda normed: None,
            differentiable_twice=differentiable_twice,
        )
    x = x.reshape(num_images, -1, x.shape[-1])
    if clip.ln_post_weight is not None:
        x = F.layer_norm(x, x.shape[-1:], clip.ln_post_weight, clip.ln_post_bias, tower.eps)
    features = x[:, 0]
    if clip.vision_projection is not None:
        features = features @ clip.vision_projection
    if not reads_prompts:
        return features, None
    return features, x[:, 1:].mean(dim=1)


def _block(
    tower: Tower,
    block: Block,
    x_RTD: Tensor,
    *,
    mask: Tensor | None = None,
    out: int | Tensor | None = None,
    parallel: Callable[[Tensor], Tensor | None],
    differentiable_twice: bool,
) -> Tensor:
    """Return z + MLP(norm_2(z)) + parallel(n), where n = norm_1(x) and z = x + attention(n).

    Args:
        tower: Tower of the block, for the settings that all its blocks share.
        block: Weights of the block.
        x_RTD: Input of the block: R rows of T tokens.
        mask: (R, 1, T, S). The first S - T keys are the first tokens of row 0, and shared by all rows.
            None: each row has its own T keys, and each token attends to all of them.
        out: Tokens to return. None: all tokens. An int n: the first n tokens of each row (only without a
            mask). A tensor: slots of the flattened (R x T) tokens, returned as (number of slots, 1, D).
        parallel: Function of n at the returned tokens. None as its result: nothing is added.
        differentiable_twice: True if second derivatives are needed.
    """
    normed = F.layer_norm(x_RTD, x_RTD.shape[-1:], block.ln_1_weight, block.ln_1_bias, tower.eps)
    qkv = F.linear(normed, block.in_proj_weight, block.in_proj_bias)
    q, k, v = qkv.unflatten(-1, (3, tower.num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (R, H, T, W)
    if isinstance(out, int):
        # Fewer queries save time. The slots of a tensor are selected after attention instead.
        assert mask is None, "the mask has a row per query"
        q = q[:, :, :out]
    num_shared = num_shared_keys(mask)
    if num_shared:
        k = _prepend_shared(k, num_shared)
        v = _prepend_shared(v, num_shared)
    attended = _attention(q, k, v, mask, tower.scale, differentiable_twice=differentiable_twice)
    attended = attended.transpose(1, 2).flatten(2)
    h = F.linear(_select(attended, out), block.out_proj_weight, block.out_proj_bias)
    z = _select(x_RTD, out) + h if tower.residual else h
    y = z + _mlp(tower, block, z)
    added = parallel(_select(normed, out))
    return y if added is None else y + added


def _prepend_shared(keys_RHTW: Tensor, num_shared: int) -> Tensor:
    """Return keys (or values) of R rows and H heads, preceded by the first `num_shared` ones of row 0."""
    shared = keys_RHTW[:1, :, :num_shared].expand(len(keys_RHTW), -1, -1, -1)
    return torch.cat([shared, keys_RHTW], dim=2)


def _mlp(tower: Tower, block: Block, z: Tensor) -> Tensor:
    """Return the MLP's output.

    QuickGELU, x sigmoid(a x), is computed as silu(a x) / a, with which autograd stores less. LayerNorm and
    the bias of c_fc are scaled by a, so that c_fc returns a x. The division by a follows c_proj, where the
    tensor is smaller. So the bias of c_proj is scaled by a as well.
    """
    if tower.activation != "quick_gelu":
        h = F.layer_norm(z, z.shape[-1:], block.ln_2_weight, block.ln_2_bias, tower.eps)
        activate, _, _ = ACTIVATIONS[tower.activation]
        h = activate(F.linear(h, block.c_fc_weight, block.c_fc_bias))
        return F.linear(h, block.c_proj_weight, block.c_proj_bias)
    factor = QUICK_GELU_FACTOR
    assert block.ln_2_weight is not None
    assert block.ln_2_bias is not None
    h = F.layer_norm(z, z.shape[-1:], factor * block.ln_2_weight, factor * block.ln_2_bias, tower.eps)
    h = F.silu(F.linear(h, block.c_fc_weight, factor * block.c_fc_bias))
    return F.linear(h, block.c_proj_weight, factor * block.c_proj_bias) / factor


def _select(x_RTD: Tensor, out: int | Tensor | None) -> Tensor:
    """Return the tokens that `out` selects (see `_block`)."""
    if out is None:
        return x_RTD
    if isinstance(out, int):
        return x_RTD[:, :out]
    return x_RTD.flatten(0, 1)[out][:, None]


def _attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, *, differentiable_twice: bool
) -> Tensor:
    if not differentiable_twice:
        return fused_attention(q, k, v, mask=mask, scale=scale)
    # torch's fused attention has no second derivative.
    scores = (q * scale) @ k.mT
    if mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1) @ v
