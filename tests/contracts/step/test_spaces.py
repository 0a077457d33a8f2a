"""Settings that built-in spaces sample can be trained. No combination of them is refused."""

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
"""Number of samples of each space."""
NUM_STEPS_OF_SHARED_SPACE = 10
"""Number of samples of the space `default` that take a step. Several methods share this space."""
TRAINED = [method for method in METHODS if not build(configure(method)).is_untrained]


def both_weights(*weights: float, **others: Any) -> list[dict[str, Any]]:
    """Return settings in which the regularizers of texts and images have the same weight.

    Args:
        weights: A weight for each of the settings.
        others: More settings, the same in each.
    """
    return [
        {"regularizer.text_weight": weight, "regularizer.image_weight": weight, **others}
        for weight in weights
    ]


PUBLISHED: dict[str, list[dict[str, Any]]] = {
    "tcp": [{"train.epochs": epochs} for epochs in (25, 50)],
    "mma": [{"adapters.layers": "5-12", "adapters.dim": 32, "adapters.scale": 0.001, "optim.lr": 0.0015}],
    "mmrl": [
        *both_weights(0.01, 0.2, 0.5, 3, 4, 5, 6, 7),
        {"prompts.dim": 512, "train.epochs": 10},
        {"prompts.dim": 2048, "train.epochs": 5},
    ],
    "dept-coop": [{"logits.weight": 0.7, "optim.logits_lr_factor": 6.5, "prompts.text_length": 16}],
    "coprompt": [
        *both_weights(0.1, 8, **{"augment.views": 2}),
        {"train.epochs": 5},
    ],
}
"""Published settings that depend on the dataset, and settings of the method's own components."""

META_SETTINGS = {"inner.lr", "inner.outer_weight", "task.augmentation"}
"""Settings in the spaces of methods, for recipes that add a meta phase."""


def samples(space: Space) -> list[dict[str, Any]]:
    """Return random settings from a space."""
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


SPACES = [(method, space_of_method(method)) for method in TRAINED]
SPACES += [(method, "full") for method in ("prometar", "mmrl", "mma", "coprompt", "dept-coop")]


@pytest.mark.parametrize(("method", "name"), SPACES)
def test_samples_of_a_space_can_be_trained(method: str, name: str) -> None:
    config = configure(method)
    for number, settings in enumerate(samples(load_space(name).restrict(config))):
        assert Config(method=method).override(settings).flat().items() >= settings.items()
        _, composition, model, start = make(settings, method)
        if name == SHARED_SPACE and number >= NUM_STEPS_OF_SHARED_SPACE:
            continue
        state, losses = step(model, composition, start, *batch_for(model, composition), RATES)
        assert all(bool(loss.isfinite()) for loss in losses.values()), settings
        assert state.leaves.keys() == start.leaves.keys()
