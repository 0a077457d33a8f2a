"""Configurations that are stepped together end where each ends alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from prometar.config.recipes import NAMES as METHODS
from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.methods.composition import Method
from prometar.methods.meta_tasks import one_class_out, task_rng
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import Batch, Task, embed_batch, take_query, take_support
from prometar.step.prompted_clip import Model
from prometar.step.state import State
from prometar.step.task_selection import select
from prometar.step.vmapped import _split, require_one_structure, stack, step_all, unstack
from tests.contracts.step.test_step import VARIANTS, make

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in METHODS if not name.startswith("zero-shot")},
    **{f"prometar, {name}": ("prometar", values) for name, values in VARIANTS.items() if values},
    **{f"prometar, {kind}": ("prometar", {"task.augmentation": kind}) for kind in ("input_mixup", "cutmix")},
    "prometar, an own distance": ("prometar", {"regularizer.kind": "examples.huber:Huber"}),
}
NUMBERS: list[dict[str, Any]] = [
    {},
    {"inner.lr": 0.1, "regularizer.text_weight": 5.0, "task.mixup_alpha": 2.0},
    {"inner.outer_weight": 0.3, "regularizer.image_weight": 3.0, "regularizer.logits_weight": 0.5},
]
RATES = [Rates(0.1, 0.5), Rates(0.02, 0.1, momentum=0.5), Rates(0.1, 0.2, weight_decay=0.1)]


def numbers_of(method: str, values: dict[str, Any], k: int) -> dict[str, Any]:
    """Numbers of the k-th configuration, but no weight for a term that the method does not have."""
    has = Config(method=method).override(values).model_dump()

    def there(key: str) -> bool:
        section, name = key.split(".")
        return section != "regularizer" or bool(has[section][name])

    return {key: value for key, value in NUMBERS[k].items() if there(key)}


def batches_for(model: Model, methods: list[Method], number: int, **how: bool) -> list[Batch]:
    """The same images for all, embedded once, and each method's own task on them."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=generator)
    # Step 0 draws one image for the query, step 1 none, step 2 two, whose partners are other ones for each.
    labels = torch.tensor([[0, 1, 1, 2], [1, 1, 1, 1], [0, 0, 1, 2]][number])
    whole = embed_batch(model.clip, images, labels)
    found = []
    for method in methods:
        draw = None
        if method.inner is not None:
            draw = one_class_out(labels, method.augmentation, task_rng(0, number))
        task = None
        if draw is not None:
            chosen = select(draw, method.augmentation, dtype=model.clip.working_dtype, **how)
            query = take_query(model.clip, method, images, whole, chosen)
            task = Task(take_support(whole, chosen), query)
        found.append(Batch(whole, task))
    return found


@pytest.mark.parametrize("case", CASES)
def test_each_equals_its_own_run(case: str) -> None:
    name, values = CASES[case]
    made = [make({**numbers_of(name, values, k), **values}, name) for k in range(len(RATES))]
    model, methods = made[0][2], [method for _, method, _, _ in made]
    alone = [start for *_, start in made]
    together = stack(alone)
    for number in range(3):
        own = batches_for(model, methods, number)
        single = [step(model, *each) for each in zip(methods, alone, own, RATES, strict=True)]
        alone = [state for state, _ in single]
        batches = batches_for(model, methods, number, by_labels=True)
        together, scalars = step_all(model, methods, together, batches, RATES)
        for k, (_, own) in enumerate(single):
            for key, value in own.items():
                torch.testing.assert_close(scalars[key][k], value, rtol=1e-9, atol=1e-9)
    for ours, state in zip(unstack(together), alone, strict=True):
        assert ours.step == state.step == 3
        for key, value in state.tensors().items():
            torch.testing.assert_close(ours.tensors()[key], value, rtol=0, atol=1e-8)


def test_images_that_all_see_are_encoded_unstacked() -> None:
    _, method, model, _ = make({})
    batch = batches_for(model, [method], 0, by_labels=True)[0]
    shared, own, put = _split([batch, batch])
    assert not own
    assert put(shared, own).images.tokens is batch.images.tokens


def test_own_parts_with_other_settings_are_other_structures() -> None:
    """What they do with a number is theirs: nothing says that it may be a tensor of many."""
    widths = ({"regularizer.kind": "examples.huber:Huber", "regularizer.args.delta": d} for d in (0.1, 0.2))
    with pytest.raises(UserError, match="not in their regularizer"):
        require_one_structure([make(values)[1] for values in widths])


def test_other_structures_are_refused() -> None:
    _, method, model, start = make({})
    batch = batches_for(model, [method], 0, by_labels=True)[0]
    with pytest.raises(UserError, match="not in their modulator: Gate"):
        step_all(
            model,
            [method, replace(method, modulator=make({"modulator.kind": "add"})[1].modulator)],
            stack([start, start]),
            [batch] * 2,
            RATES[:2],
        )
    with pytest.raises(UserError, match="at one step"):
        stack([start, State(**{**vars(start), "step": 1})])
