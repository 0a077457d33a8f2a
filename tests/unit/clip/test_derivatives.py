"""Hand-written derivatives against automatic derivatives of the plain formulas, in float64.

`vjp` is J^T g, `jvp` is J t, and `hvp` is the gradient of <r, f(x)> + sum_k <g_k, J(x) t_k>.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vjp

from prometar.clip import text as text_module
from prometar.clip.activations import ACTIVATIONS, Activation
from prometar.clip.attention import Attention
from prometar.clip.function import EPS, Norm, Projection, normalize
from prometar.clip.openclip import tokenize
from prometar.clip.text import text_input, text_pass
from prometar.clip.tower import LayerPrompts, Pass
from prometar.clip.vision import embed_images, image_pass
from tests.support.tiny import backbone
from tests.unit.clip.test_towers import TEXTS

EXACT = {"rtol": 1e-9, "atol": 1e-11}
ROWS = 2
LENGTH = 5
WIDTH = 16
HEADS = 2
SHARED = 2
SCALE = 0.3  # of attention scores


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tangent_of(function: Callable[[Any], Tensor], x: Any, t: Any) -> Tensor:
    """Return J t, computed as the transpose of g -> J^T g."""
    value, pullback = vjp(function, x)

    def transposed_jacobian(g: Tensor) -> Tensor:
        return pullback(g)[0]

    _, transpose = vjp(transposed_jacobian, torch.zeros_like(value))
    (pushed,) = transpose(t)
    return pushed


WEIGHT = random(WIDTH, seed=1)
BIAS = random(WIDTH, seed=2)
MATRIX = random(WIDTH, 3, seed=3)


def plain_attention(qkv: Tensor, mask: Tensor | None, num_shared: int, num_queries: int | None) -> Tensor:
    by_head = qkv.unflatten(-1, (3, HEADS, -1))
    q, k, v = (by_head[:, :, index].transpose(1, 2) for index in range(3))
    if num_shared:  # the first keys are the first tokens of row 0
        k = torch.cat([k[:1, :, :num_shared].expand(ROWS, -1, -1, -1), k], dim=2)
        v = torch.cat([v[:1, :, :num_shared].expand(ROWS, -1, -1, -1), v], dim=2)
    scores = q[:, :, :num_queries] @ k.mT * SCALE
    if mask is not None:
        scores = scores + mask
    attended = scores.softmax(dim=-1) @ v
    return attended.transpose(1, 2).flatten(2)


def masked(num_keys: int) -> Tensor:
    mask = torch.zeros(ROWS, 1, LENGTH, num_keys, dtype=torch.float64)
    mask[:, :, 1:3, 2:4] = float("-inf")
    return mask


class Case(NamedTuple):
    """Function with hand-written derivatives, and the plain formula that it must agree with.

    Args:
        make: Returns the function with derivatives.
        plain: The plain formula, which torch differentiates.
        width: Width of the input.
    """

    make: Callable[[], Any]
    plain: Callable[[Tensor], Tensor]
    width: int = WIDTH


def attention_case(
    *, mask: Tensor | None = None, num_shared: int = 0, num_queries: int | None = None
) -> Case:
    return Case(
        partial(Attention, HEADS, scale=SCALE, mask=mask, num_shared=num_shared, num_queries=num_queries),
        partial(plain_attention, mask=mask, num_shared=num_shared, num_queries=num_queries),
        3 * WIDTH,
    )


CASES: dict[str, Case] = {
    "norm": Case(
        lambda: Norm(None, None),
        partial(F.layer_norm, normalized_shape=(WIDTH,), eps=EPS),
    ),
    "norm with weights": Case(
        lambda: Norm(WEIGHT, BIAS),
        partial(F.layer_norm, normalized_shape=(WIDTH,), weight=WEIGHT, bias=BIAS, eps=EPS),
    ),
    "projection": Case(lambda: Projection(MATRIX, None), lambda x: x @ MATRIX),
    "projection with a bias": Case(
        lambda: Projection(MATRIX, BIAS[:3]),
        lambda x: x @ MATRIX + BIAS[:3],
    ),
    **{name: Case(partial(Activation, name), value) for name, (value, _, _) in ACTIVATIONS.items()},
    "attention, plain": attention_case(),
    "attention, masked": attention_case(mask=masked(LENGTH)),
    "attention, shared keys": attention_case(mask=masked(LENGTH + SHARED), num_shared=SHARED),
    "attention, few queries": attention_case(num_queries=2),
}


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_the_derivatives_are_those_of_the_plain_formula(name: str, count: int) -> None:
    make, plain, width = CASES[name]
    x = random(ROWS, LENGTH, width, seed=4)
    expected, pullback = vjp(plain, x)
    g = random(count, *expected.shape, seed=5)
    t = random(count, *x.shape, seed=6)
    r = random(*expected.shape, seed=7)
    pulled = torch.stack([pullback(g_k)[0] for g_k in g])
    pushed = torch.stack([tangent_of(plain, x, t_k) for t_k in t])

    function = make()
    value, residuals = function.forward(x)
    torch.testing.assert_close(value, expected, **EXACT)
    torch.testing.assert_close(function.value(x), expected, **EXACT)
    torch.testing.assert_close(function.vjp(residuals, g), pulled, **EXACT)
    pulled_for_hvp, cotangents = function.vjp_for_hvp(residuals, g)
    torch.testing.assert_close(pulled_for_hvp, pulled, **EXACT)
    pushed_forward, tangents = function.jvp(residuals, t)
    torch.testing.assert_close(pushed_forward, pushed, **EXACT)
    hvp = function.hvp(residuals, cotangents, tangents, r)
    torch.testing.assert_close(hvp, expected_hvp(plain, x, g, t, r), **EXACT)


def expected_hvp(plain: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Return the gradient of <r, f(x)> + sum_k <g_k, J(x) t_k>.

    The scalar uses J^T g instead of J t, because J t would need a third derivative of LayerNorm, which torch
    lacks.
    """

    def scalar(x: Tensor) -> Tensor:
        value, pullback = vjp(plain, x)
        products = [(pullback(g_k)[0] * t_k).sum() for g_k, t_k in zip(g, t, strict=True)]
        return (r * value).sum() + sum(products)

    return grad(scalar)(x)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_activations_are_differentiated_in_float32_too(name: str, count: int) -> None:
    """On a CPU, float32 has other kernels than float64."""
    x = random(3, 40, seed=1)
    g = random(count, 3, 40, seed=2)
    activation = Activation(name)
    expected = activation.vjp(x, g)
    found = activation.vjp(x.float(), g.float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


RunTower = Callable[[LayerPrompts], tuple[Tensor, Pass]]
"""Function of prompts that returns the features of a tower, and its pass."""


def text_tower(layers: set[int]) -> tuple[RunTower, LayerPrompts]:
    clip = backbone(torch.float64).clip.folded()
    text = text_input(clip, tokenize(TEXTS), num_context=2)
    prompts = {layer: random(2, 16, seed=layer) for layer in layers}
    return lambda prompts: text_pass(clip, text, prompts), prompts


def vision_tower(layers: set[int]) -> tuple[RunTower, LayerPrompts]:
    clip = backbone(torch.float64).clip.folded()
    tokens = embed_images(clip, random(2, 3, 16, 16, seed=10))
    prompts = {layer: random(3, 32, seed=layer) for layer in layers}
    return lambda prompts: image_pass(clip, tokens, prompts), prompts


# 9 tokens per row spread the texts over several rows, and 96, the default, put all texts into one.
@pytest.mark.parametrize("row_length", [9, 96])
@pytest.mark.parametrize("layers", [{0}, {1}, {0, 2}, {0, 1, 2}], ids=str)
@pytest.mark.parametrize("tower", [text_tower, vision_tower])
def test_tower_derivatives_match_autograd_up_to_second_order(
    tower: Any, layers: set[int], row_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expected: torch's derivatives of the same forward pass, which other tests compare with open_clip."""
    monkeypatch.setattr(text_module, "ROW_LENGTH", row_length)
    require_derivatives(*tower(layers))


def require_derivatives(run: RunTower, prompts: LayerPrompts) -> None:
    """Require the derivatives of autograd, and that calls do not change the pass."""

    def plain(prompts: LayerPrompts) -> Tensor:
        return run(prompts)[0]

    features, tower_pass = run(prompts)
    expected, pullback = vjp(plain, prompts)
    g = random(2, *features.shape, seed=20)
    r = random(*features.shape, seed=21)
    t = {layer: random(2, *prompt.shape, seed=30 + layer) for layer, prompt in prompts.items()}
    tangents = [{layer: t_layer[k] for layer, t_layer in t.items()} for k in range(2)]

    def scalar(prompts: LayerPrompts) -> Tensor:
        """Return <r, f(x)> + sum_k <J^T g_k, t_k>, as in `expected_hvp`."""
        value, pullback = vjp(plain, prompts)
        products = []
        for g_k, t_k in zip(g, tangents, strict=True):
            (pulled,) = pullback(g_k)
            products += [(pulled[layer] * t_k[layer]).sum() for layer in pulled]
        return (r * value).sum() + sum(products)

    torch.testing.assert_close(features, expected, **EXACT)
    pushed, jvp_records = tower_pass.jvp(t)
    pulled, vjp_records = tower_pass.vjp_for_hvp(g)
    for k in range(2):
        pulled_k = {layer: pulled_layer[k] for layer, pulled_layer in pulled.items()}
        torch.testing.assert_close(pulled_k, pullback(g[k])[0], **EXACT)
        torch.testing.assert_close(pushed[k], tangent_of(plain, prompts, tangents[k]), **EXACT)
    hvp = tower_pass.hvp(vjp_records, jvp_records, r)
    torch.testing.assert_close(hvp, grad(scalar)(prompts), rtol=1e-8, atol=1e-9)
    require_purity(tower_pass, g, t, r)


def require_purity(tower_pass: Pass, g: Tensor, t: LayerPrompts, r: Tensor) -> None:
    """Require the same bits from repeated calls in another order, until the residuals are released."""
    expected_jvp, jvp_records = tower_pass.jvp(t)
    expected_vjp, vjp_records = tower_pass.vjp_for_hvp(g)
    expected_hvp = tower_pass.hvp(vjp_records, jvp_records, r)
    # Derivatives at other cotangents and tangents change nothing.
    tower_pass.vjp(-g)
    tower_pass.jvp({layer: 2 * each for layer, each in t.items()})
    tower_pass.vjp_for_hvp(2 * g)
    found_vjp, vjp_records = tower_pass.vjp_for_hvp(g)
    found_jvp, jvp_records = tower_pass.jvp(t)
    assert torch.equal(found_jvp, expected_jvp)
    assert_equal_bits(found_vjp, expected_vjp)
    assert_equal_bits(tower_pass.hvp(vjp_records, jvp_records, r), expected_hvp)
    assert_equal_bits(tower_pass.hvp(vjp_records, jvp_records, r, release=True), expected_hvp)
    with pytest.raises(AssertionError, match="the residuals of this pass have been released"):
        tower_pass.vjp(g)


def assert_equal_bits(found: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for layer, tensor in expected.items():
        assert torch.equal(found[layer], tensor), layer


def test_normalize_has_the_bits_and_derivatives_of_torch() -> None:
    x = random(3, 5, seed=0).requires_grad_()
    expected = F.normalize(x, dim=-1)
    assert torch.equal(normalize(x), expected)
    assert torch.equal(normalize(torch.zeros(2, 4)), torch.zeros(2, 4))

    def derivatives(unit: Tensor) -> tuple[Tensor, Tensor]:
        (first,) = torch.autograd.grad(unit.sin().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.cos().sum(), x)
        return first, second

    for found, wanted in zip(derivatives(normalize(x)), derivatives(expected), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)
    assert torch.autograd.gradgradcheck(normalize, x)
