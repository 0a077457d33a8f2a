"""`make gpu` parity: what a CPU computes is within the bounds, and planted faults exceed them."""

import importlib
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from prometar.clip import text
from prometar.step import iteration

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
PRECISIONS = ("fp32", "tf32", "bf16")  # compared with fp64
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module("gpu_parity")


@pytest.fixture(scope="module")
def reference(parity: ModuleType) -> Any:
    return parity.train(parity.run_of("fp64", device=CPU))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_correct_implementation_is_within_the_bounds(
    parity: ModuleType, reference: Any, precision: str
) -> None:
    with parity.emulated(precision):
        found = parity.train(parity.run_of(precision, device=CPU))
    deviations = parity.deviations(found, reference)
    assert deviations.keys() == set(parity.GROUPS)
    assert not parity.violations(deviations, parity.BOUNDS[precision])
    assert deviations["prompts"] > 0, "the precision was not used"


# A method that hardly diverges in a few steps, and one whose optimizer divides by the size of the gradient.
@pytest.mark.parametrize("method", ["dept-kgcoop", "mmrl"])
def test_other_methods_in_float32_are_within_the_bounds_and_zero_gradients_are_not(
    parity: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = parity.train(parity.run_of("fp64", device=CPU, method=method))
    found = parity.deviations(parity.train(parity.run_of("fp32", device=CPU, method=method)), expected)
    assert not parity.violations(found, parity.BOUNDS["fp32"])
    zero_gradients(monkeypatch)
    broken = parity.deviations(parity.train(parity.run_of("fp32", device=CPU, method=method)), expected)
    assert parity.violations(broken, parity.BOUNDS["fp32"])


def zero_gradients(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return _change_gradients(monkeypatch, 0.0)


def flipped_gradients(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return _change_gradients(monkeypatch, -1.0)


def _change_gradients(monkeypatch: pytest.MonkeyPatch, factor: float) -> dict[str, Any]:
    original = iteration.update_leaves

    def update_leaves(optimizer: Any, leaves: Any, gradient: dict[str, Tensor], *rest: Any) -> Any:
        changed = {name: factor * g for name, g in gradient.items()}
        return original(optimizer, leaves, changed, *rest)

    monkeypatch.setattr(iteration, "update_leaves", update_leaves)
    return {}


def no_meta_phase(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"inner__kind": "none"}


def no_meta_gradient(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    return {"inner__outer_weight": 0.0}


def no_causal_mask(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every text token attends to all others."""
    original = text.text_input

    def text_input(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        return replace(found, mask_R1TS=torch.zeros_like(found.mask_R1TS))

    monkeypatch.setattr(text, "text_input", text_input)
    for module in ("prometar.step.prompted_clip", "prometar.clip.features"):
        monkeypatch.setattr(importlib.import_module(module), "text_input", text_input, raising=False)
    return {}


@pytest.mark.parametrize(
    "plant", [zero_gradients, flipped_gradients, no_meta_phase, no_meta_gradient, no_causal_mask]
)
def test_a_planted_fault_exceeds_the_bounds_of_every_precision(
    parity: ModuleType, reference: Any, plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = plant(monkeypatch)
    found = parity.deviations(parity.train(parity.run_of("fp32", device=CPU, **settings)), reference)
    for precision in PRECISIONS:
        assert parity.violations(found, parity.BOUNDS[precision]), precision


def test_a_missing_second_order_term_exceeds_the_bound_of_float32(parity: ModuleType, reference: Any) -> None:
    found = parity.deviations(
        parity.train(parity.run_of("fp32", device=CPU, inner__order="first")), reference
    )
    assert parity.violations(found, parity.BOUNDS["fp32"])


def test_values_that_are_not_finite_exceed_every_bound(parity: ModuleType, reference: Any) -> None:
    broken = {name: tensor * torch.nan for name, tensor in reference.end.items()}
    found = parity.deviations(parity.Trajectory(reference.start, broken, reference.history), reference)
    assert parity.violations(found, parity.BOUNDS["bf16"]).keys() == set(parity.STATE_GROUPS)


def test_values_are_rounded_to_tf32(parity: ModuleType) -> None:
    step = 2.0**-10  # between neighboring values of TF32 from 1 to 2
    values = torch.tensor([1.0, 1 + 0.4 * step, 1 + 0.6 * step, -1 - 0.6 * step])
    expected = torch.tensor([1.0, 1.0, 1 + step, -1 - step])
    assert torch.equal(parity.rounded_to_tf32(values), expected)


def test_a_saved_trajectory_equals_the_original(parity: ModuleType, reference: Any, tmp_path: Path) -> None:
    reference.save(tmp_path)
    again = parity.Trajectory.load(tmp_path)
    assert again.equals(reference)
    again.end["prompts/text.0"] = again.end["prompts/text.0"] * (1 + 1e-15)
    assert not again.equals(reference)
