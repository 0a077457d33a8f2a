"""Attention against torch's own, to the second derivative."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from prometar.backbone.attention import attention


def heads(*sizes: int) -> torch.Tensor:
    shape = (2, 3, *sizes)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(sizes)))


QKV = (heads(4, 5), heads(6, 5), heads(6, 5) * 2)
MASK = torch.zeros(2, 1, 4, 6, dtype=torch.float64)
MASK[:, :, 1:3, 2:5] = float("-inf")


@pytest.mark.parametrize("mask", [None, MASK], ids=["plain", "masked"])
def test_equals_torch_and_its_derivatives_are_right(mask: torch.Tensor | None) -> None:
    fused = torch.nn.functional.scaled_dot_product_attention(*QKV, attn_mask=mask)
    leaves = [x.clone().requires_grad_() for x in QKV]
    torch.testing.assert_close(attention(*leaves, mask), fused)
    assert gradcheck(lambda *qkv: attention(*qkv, mask), leaves)
    assert gradgradcheck(lambda *qkv: attention(*qkv, mask), leaves)


@pytest.mark.parametrize("mask", [None, MASK], ids=["plain", "masked"])
def test_mapped_over_one_of_its_inputs(mask: torch.Tensor | None) -> None:
    q, k, v = QKV
    many = torch.stack([q, 2 * q, -q])

    def second(query: torch.Tensor) -> torch.Tensor:
        def first(x: torch.Tensor) -> torch.Tensor:
            return torch.func.grad(lambda y: attention(y, k, v, mask).sin().sum())(x).square().sum()

        return torch.func.grad(first)(query)

    mapped = torch.vmap(second)(many)
    torch.testing.assert_close(mapped, torch.stack([second(each) for each in many]))
