"""Whatever a built-in space samples trains. No combination of its settings is refused."""

from typing import Any

import optuna
import pytest

from prometar.config.recipes import METHODS
from prometar.config.settings import Config, configure
from prometar.data.datasets.benchmarks import BENCHMARKS
from prometar.methods.composition import build
from prometar.step.iteration import step
from tests.contracts.step.test_step import RATES, batch_for, make
from tune.space.space import SHARED_SPACE, Space, load_space, space_of_method

NUM_SAMPLES = 15
NUM_STEPS = 10
"""Samples of the space `default` that take a step. It has been searched for long."""
TRAINED = [method for method in METHODS if not build(configure(method)).is_untrained]
PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "tcp": [{"train.epochs": epochs} for epochs in (25, 50)],
    "mma": [{"adapters.layers": "5-12", "adapters.dim": 32, "adapters.scale": 0.001, "optim.lr": 0.0015}],
    "mmrl": [
        *(
            {"regularizer.text_weight": weight, "regularizer.image_weight": weight}
            for weight in (0.01, 0.2, 0.5, 3, 4, 5, 6, 7)
        ),
        {"prompts.dim": 512, "train.epochs": 10},
        {"prompts.dim": 2048, "train.epochs": 5},
    ],
    "dept-coop": [{"logits.weight": 0.7, "optim.logits_lr_factor": 6.5, "prompts.text_length": 16}],
    "coprompt": [
        *(
            {"regularizer.text_weight": weight, "regularizer.image_weight": weight, "augment.views": 2}
            for weight in (0.1, 8)
        ),
        {"train.epochs": 5},
    ],
}
"""Published settings that depend on the dataset, and settings of the method's own components."""

META_SETTINGS = {"inner.lr", "inner.outer_weight", "task.augmentation"}
"""Settings in the spaces of methods, for recipes that add a meta phase."""


def samples(space: Space) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.sample(study.ask()) for _ in range(NUM_SAMPLES)]


@pytest.mark.parametrize("method", TRAINED)
def test_the_space_of_a_method_contains_its_published_settings(method: str) -> None:
    config = configure(method)
    space = load_space(space_of_method(method)).restrict(config)
    assert space.ranges
    assert space.default_values(config)
    if space.name == method:
        searched = load_space(method).ranges
        assert space.ranges == {key: searched[key] for key in searched if key not in META_SETTINGS}
        for dataset in BENCHMARKS:
            assert space.default_values(configure(method, {"data.name": dataset}))
        for settings in PUBLISHED.get(method, []):
            assert space.check(settings, where=method) == settings


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, space_of_method(method)) for method in TRAINED]
    + [(method, "full") for method in ("prometar", "mmrl", "mma", "coprompt", "dept-coop")],
)
def test_samples_of_a_space_train(method: str, name: str) -> None:
    config = configure(method)
    for number, settings in enumerate(samples(load_space(name).restrict(config))):
        assert Config(method=method).override(settings).flat().items() >= settings.items()
        _, part, model, start = make(settings, method)
        if name == SHARED_SPACE and number >= NUM_STEPS:
            continue
        state, losses = step(model, part, start, *batch_for(model, part), RATES)
        assert all(bool(loss.isfinite()) for loss in losses.values()), settings
        assert state.leaves.keys() == start.leaves.keys()
