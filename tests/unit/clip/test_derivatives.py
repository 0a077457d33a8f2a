"""Hand-written derivatives against automatic derivatives of the plain formulas, in float64.

`vjp` is J^T g, `jvp` is J t, and `hvp` is the gradient of <r, f(x)> + sum_k <g_k, J(x) t_k>.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

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


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def tangent_of(function: Callable[[Any], Tensor], x: Any, t: Any) -> Tensor:
    """Return J t, computed as the transpose of g -> J^T g."""
    value, pullback = vjp(function, x)
    (pushed,) = vjp(lambda g: pullback(g)[0], torch.zeros_like(value))[1](t)
    return pushed


WEIGHT = random(WIDTH)
BIAS = random(WIDTH, 1)[:, 0]
MATRIX = random(WIDTH, 3)


def plain_attention(qkv: Tensor, mask: Tensor | None, num_shared: int, num_queries: int | None) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, HEADS, -1)).movedim(2, 0).transpose(2, 3)
    if num_shared:
        k, v = (torch.cat([x[:1, :, :num_shared].expand(ROWS, -1, -1, -1), x], dim=2) for x in (k, v))
    scores = q[:, :, :num_queries] @ k.mT * 0.3
    p = (scores if mask is None else scores + mask).softmax(dim=-1)
    return (p @ v).transpose(1, 2).flatten(2)


def masked(num_keys: int) -> Tensor:
    mask = torch.zeros(ROWS, 1, LENGTH, num_keys, dtype=torch.float64)
    mask[:, :, 1:3, 2:4] = float("-inf")
    return mask


CASES: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor], int]] = {
    "norm": (lambda: Norm(None, None), partial(F.layer_norm, normalized_shape=(WIDTH,), eps=EPS), WIDTH),
    "norm with weights": (
        lambda: Norm(WEIGHT, BIAS),
        partial(F.layer_norm, normalized_shape=(WIDTH,), weight=WEIGHT, bias=BIAS, eps=EPS),
        WIDTH,
    ),
    "projection": (lambda: Projection(MATRIX, None), lambda x: x @ MATRIX, WIDTH),
    "projection with a bias": (lambda: Projection(MATRIX, BIAS[:3]), lambda x: x @ MATRIX + BIAS[:3], WIDTH),
    **{name: (partial(Activation, name), value, WIDTH) for name, (value, _, _) in ACTIVATIONS.items()},
}
for name, mask, shared, queries in (
    ("plain", None, 0, None),
    ("masked", masked(LENGTH), 0, None),
    ("shared keys", masked(LENGTH + SHARED), SHARED, None),
    ("few queries", None, 0, 2),
):
    CASES[f"attention, {name}"] = (
        partial(Attention, HEADS, scale=0.3, mask=mask, num_shared=shared, num_queries=queries),
        partial(plain_attention, mask=mask, num_shared=shared, num_queries=queries),
        3 * WIDTH,
    )


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_the_derivatives_are_those_of_the_plain_formula(case: str, count: int) -> None:
    make, plain, width = CASES[case]
    x = random(ROWS, LENGTH, width)
    expected, pullback = vjp(plain, x)
    g = random(count, *expected.shape)
    t = random(count, *x.shape) + 0.1
    r = random(*expected.shape)
    part = make()
    pulled = torch.stack([pullback(each)[0] for each in g])
    pushed = torch.stack([tangent_of(plain, x, each) for each in t])
    value, residuals = part.forward(x)
    torch.testing.assert_close(value, expected, **EXACT)
    torch.testing.assert_close(part.value(x), expected, **EXACT)
    torch.testing.assert_close(part.vjp(residuals, g), pulled, **EXACT)
    pulled_for_hvp, cotangents = part.vjp_for_hvp(residuals, g)
    torch.testing.assert_close(pulled_for_hvp, pulled, **EXACT)
    pushed_forward, tangents = part.jvp(residuals, t)
    torch.testing.assert_close(pushed_forward, pushed, **EXACT)
    hvp = part.hvp(residuals, cotangents, tangents, r)
    torch.testing.assert_close(hvp, second(plain, x, g, t, r), **EXACT)


def second(plain: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Return the expected hvp, from <g, J t> = <J^T g, t>. torch has no third derivative of LayerNorm."""

    def whole(x: Tensor) -> Tensor:
        value, pullback = vjp(plain, x)
        return (r * value).sum() + sum((pullback(each)[0] * b).sum() for each, b in zip(g, t, strict=True))

    return grad(whole)(x)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("count", [1, 2])
def test_activations_are_differentiated_in_float32_too(name: str, count: int) -> None:
    """On a CPU, float32 has other kernels than float64."""
    x = random(3, 40)
    g = random(count, 3, 40)
    activation = Activation(name)
    expected = activation.vjp(x, g)
    found = activation.vjp(x.float(), g.float())
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def text_tower(layers: set[int]) -> tuple[Callable[[LayerPrompts], tuple[Tensor, Pass]], LayerPrompts]:
    clip = backbone(torch.float64).clip.folded()
    text = text_input(clip, tokenize(TEXTS), num_context=2)
    return lambda prompts: text_pass(clip, text, prompts), {layer: random(2, 16) for layer in layers}


def vision_tower(layers: set[int]) -> tuple[Callable[[LayerPrompts], tuple[Tensor, Pass]], LayerPrompts]:
    clip = backbone(torch.float64).clip.folded()
    tokens = embed_images(clip, random(2, 3, 16, 16))
    return lambda prompts: image_pass(clip, tokens, prompts), {layer: random(3, 32) for layer in layers}


@pytest.mark.parametrize("row_length", [9, 96])
@pytest.mark.parametrize("layers", [{0}, {1}, {0, 2}, {0, 1, 2}], ids=str)
@pytest.mark.parametrize("tower", [text_tower, vision_tower])
def test_a_tower_is_the_plain_one_to_its_second_derivative(
    tower: Any, layers: set[int], row_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Expected: torch's derivatives of the same forward pass, which other tests compare with open_clip."""
    monkeypatch.setattr(text_module, "ROW_LENGTH", row_length)
    require_derivatives(*tower(layers))


def require_derivatives(run: Callable[[LayerPrompts], tuple[Tensor, Pass]], prompts: LayerPrompts) -> None:
    def plain(prompts: LayerPrompts) -> Tensor:
        return run(prompts)[0]

    features, one = run(prompts)
    expected, pullback = vjp(plain, prompts)
    g = random(2, *features.shape)
    r = random(*features.shape)
    t = {layer: random(2, *prompt.shape) + layer for layer, prompt in prompts.items()}
    tangents = [{layer: each[k] for layer, each in t.items()} for k in range(2)]

    def whole(prompts: LayerPrompts) -> Tensor:
        value, pullback = vjp(plain, prompts)
        pulled = [pullback(each)[0] for each in g]
        pairs = [(p[n] * tangent[n]).sum() for p, tangent in zip(pulled, tangents, strict=True) for n in p]
        return (r * value).sum() + sum(pairs)

    torch.testing.assert_close(features, expected, **EXACT)
    pushed, jvp_records = one.jvp(t)
    pulled, vjp_records = one.vjp_for_hvp(g)
    for k in range(2):
        torch.testing.assert_close({n: each[k] for n, each in pulled.items()}, pullback(g[k])[0], **EXACT)
        torch.testing.assert_close(pushed[k], tangent_of(plain, prompts, tangents[k]), **EXACT)
    hvp = one.hvp(vjp_records, jvp_records, r)
    torch.testing.assert_close(hvp, grad(whole)(prompts), rtol=1e-8, atol=1e-9)
    require_purity(one, g, t, r)


def require_purity(one: Pass, g: Tensor, t: LayerPrompts, r: Tensor) -> None:
    """Require the same bits from repeated calls in another order, until the residuals are released."""
    expected_jvp, jvp_records = one.jvp(t)
    expected_vjp, vjp_records = one.vjp_for_hvp(g)
    expected_hvp = one.hvp(vjp_records, jvp_records, r)
    # Derivatives at other cotangents and tangents change nothing.
    one.vjp(-g)
    one.jvp({layer: 2 * each for layer, each in t.items()})
    one.vjp_for_hvp(2 * g)
    found_vjp, vjp_records = one.vjp_for_hvp(g)
    found_jvp, jvp_records = one.jvp(t)
    assert torch.equal(found_jvp, expected_jvp)
    assert_equal_bits(found_vjp, expected_vjp)
    assert_equal_bits(one.hvp(vjp_records, jvp_records, r), expected_hvp)
    assert_equal_bits(one.hvp(vjp_records, jvp_records, r, release=True), expected_hvp)
    with pytest.raises(AssertionError, match="the residuals of this pass have been released"):
        one.vjp(g)


def assert_equal_bits(found: dict[int, Tensor], expected: dict[int, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for layer, tensor in expected.items():
        assert torch.equal(found[layer], tensor), layer


def test_normalize_has_the_bits_and_derivatives_of_torch() -> None:
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
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
