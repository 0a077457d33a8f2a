"""Optimizers equal those of torch.optim, and groups of leaves have their own learning rates."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prometar.clip.openclip import load_backbone
from prometar.config.settings import Config, configure, parse_config
from prometar.errors import UserError
from prometar.methods.component_check import check_components
from prometar.methods.composition import build
from prometar.methods.optimizers import SGD, Adam, AdamW, Optimizer, OptimizerState
from prometar.step.updates import Rates, update_leaves
from prometar.training.epoch import rates_of

REFERENCES: dict[str, tuple[Optimizer, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": (SGD(weight_decay=0.1), lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9, weight_decay=0.1)),
    "adam": (
        Adam(eps=1e-3, weight_decay=0.1),
        lambda p: torch.optim.Adam(p, 0.2, eps=1e-3, weight_decay=0.1),
    ),
    "adamw": (AdamW(weight_decay=0.1), lambda p: torch.optim.AdamW(p, lr=0.2, weight_decay=0.1)),
}


def random_leaves(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"text.0": (3, 4), "adapters.text.1.down": (2, 5), "logits.head": (4,)}
    return {
        name: torch.randn(shape, dtype=torch.float64, generator=generator) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("kind", REFERENCES)
def test_ten_updates_equal_those_of_torch_optim(kind: str) -> None:
    optimizer, reference_of = REFERENCES[kind]
    leaves = random_leaves(0)
    parameters = {name: torch.nn.Parameter(leaf.clone()) for name, leaf in leaves.items()}
    reference = reference_of(list(parameters.values()))
    state = OptimizerState(optimizer.initialize(leaves))
    for index in range(10):
        gradient = random_leaves(index + 1)
        for name, parameter in parameters.items():
            parameter.grad = gradient[name].clone()
        reference.step()
        leaves, state = update_leaves(optimizer, leaves, gradient, state, lambda name: 0.2)
    for name, parameter in parameters.items():
        torch.testing.assert_close(leaves[name], parameter.detach(), rtol=0, atol=1e-12)
    assert state.num_updates == 10


@pytest.mark.parametrize("kind", REFERENCES)
def test_a_group_of_leaves_is_updated_with_its_own_learning_rate(kind: str) -> None:
    optimizer, _ = REFERENCES[kind]
    rates = Rates(lr=0.2, gate_lr=0.0, factors={"logits": 0.5})
    leaves = random_leaves(0)
    before = random_leaves(0)
    state = OptimizerState(optimizer.initialize(leaves))
    grouped, grouped_state = update_leaves(optimizer, leaves, random_leaves(1), state, rates.of_leaf)
    assert list(grouped) == list(leaves)
    assert all(torch.equal(leaves[name], before[name]) for name in before), "updates are pure functions"
    for lr, names in ((0.2, ["text.0", "adapters.text.1.down"]), (0.1, ["logits.head"])):
        alone, alone_state = update_leaves(optimizer, leaves, random_leaves(1), state, lambda name, lr=lr: lr)
        for name in names:
            assert torch.equal(grouped[name], alone[name])
            for slot, tensors in alone_state.slots.items():
                assert torch.equal(grouped_state.slots[slot][name], tensors[name])


def test_factors_of_learning_rates_apply_after_the_warm_up() -> None:
    config = Config().override({"optim.logits_lr_factor": 6.5, "optim.lr": 0.0035})
    warmup = rates_of(config, 0)
    later = rates_of(config, 1)
    assert warmup.of_leaf("logits.head") == warmup.of_leaf("text.0") == 1e-5
    assert later.of_leaf("logits.head") == pytest.approx(0.02275)
    assert later.of_leaf("text.0") == 0.0035


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, SGD()),
        ({"optim.kind": "adam", "optim.eps": 1e-3}, Adam(eps=1e-3)),
        ({"optim.kind": "adamw", "optim.lr": 0.001}, AdamW(lr=0.001)),
    ],
    ids=str,
)
def test_a_configuration_selects_an_optimizer(settings: dict[str, Any], expected: Optimizer) -> None:
    config = configure("prometar", settings)
    assert config.optim == expected
    assert build(config).optimizer == expected
    assert parse_config(config.model_dump(mode="json"), where="it") == config


def test_another_optimizer_keeps_the_learning_rate_and_drops_the_momentum() -> None:
    config = Config().override({"optim.lr": 0.5, "optim.momentum": 0.1}).override({"optim.kind": "adamw"})
    assert config.optim == AdamW(lr=0.5)
    with pytest.raises(UserError, match=r"Unknown setting .optim\.mu."):
        Config().override({"optim.mu": 1})
    with pytest.raises(UserError, match=r"optim\.kind must be one of 'sgd', 'adam', 'adamw' or module:Name"):
        Config().override({"optim.kind": "lion"})


def test_new_settings_at_their_defaults_do_not_change_the_identity_of_a_run() -> None:
    keys = list(Config().identity())
    assert "optim.kind" not in keys
    assert "optim.logits_lr_factor" not in keys
    assert keys[-11:] == [
        "optim.lr",
        "optim.warmup_lr",
        "optim.gate_lr",
        "optim.gate_warmup_lr",
        "optim.gate_schedule",
        "optim.warmup_epochs",
        "optim.momentum",
        "optim.weight_decay",
        "train.epochs",
        "train.batch_size",
        "train.seed",
    ]
    changed = Config().override({"optim.kind": "adam", "optim.logits_lr_factor": 2.0}).identity()
    assert (changed["optim.kind"], changed["optim.logits_lr_factor"]) == ("adam", 2.0)


OWN = """
from dataclasses import dataclass
import torch


@dataclass(frozen=True)
class SignSGD:
    share: float = 1.0

    def initialize(self, leaves):
        return {}

    def __call__(self, leaves, gradient, slots, *, lr, num_updates):
        return {name: leaf - lr * self.share * gradient[name].sign() for name, leaf in leaves.items()}, {}


class Forgetful(SignSGD):
    def __call__(self, leaves, gradient, slots, *, lr, num_updates):
        return {}, {}
"""


def test_an_optimizer_may_be_custom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_optimizers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    settings = {"optim.kind": "own_optimizers:SignSGD", "optim.args.share": 0.5, "optim.lr": 0.2}
    config = configure("prometar", settings)
    method = check_components(config, load_backbone("mini", None).clip)
    leaves = random_leaves(0)
    rates = rates_of(config, 1)
    state = OptimizerState(method.optimizer.initialize(leaves))
    updated, _ = update_leaves(method.optimizer, leaves, random_leaves(1), state, rates.of_leaf)
    for name, gradient in random_leaves(1).items():
        assert torch.equal(updated[name], leaves[name] - 0.2 * 0.5 * gradient.sign())
    forgetful = Config().override({"optim.kind": "own_optimizers:Forgetful"})
    with pytest.raises(UserError, match="Forgetful must return a tensor of shape"):
        check_components(forgetful, load_backbone("mini", None).clip)
