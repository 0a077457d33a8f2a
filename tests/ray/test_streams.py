"""It makes no difference how a run's images are read: in this process, or by one worker or several."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from prometar.config.recipes import NAMES as METHODS
from prometar.data.datasets.dataset import Source
from prometar.data.streaming.plan import Plan
from prometar.data.streaming.raystream import stream
from prometar.data.streaming.stream import Batch, Stream, StreamOptions, stream_local
from prometar.training import session as session_module
from prometar.training.run import forget
from prometar.training.session import Session
from tests.support.small import small_run, train, without_time

OPTIONS = (StreamOptions(block_rows=8, max_tasks=1), StreamOptions(block_rows=16, max_tasks=2))


@pytest.fixture(scope="module")
def on_ray(ray_local: None) -> Callable[[int], Stream]:
    """Streams on Ray by number of OPTIONS; methods of the same plan are given the same batches."""
    made: dict[tuple[str, int], list[Batch]] = {}

    def of(which: int) -> Stream:
        def on_ray(plan: Plan, source: Source, step: int) -> Iterator[Batch]:
            key = plan.digest, which
            if key not in made:
                made[key] = list(stream(plan, source, options=OPTIONS[which]))
            return iter(made[key][step:])

        return on_ray

    return of


@pytest.mark.parametrize("name", METHODS)
def test_every_plan_of_a_run_gives_the_same_batches(
    name: str, on_ray: Callable[[int], Stream], tmp_path: Path
) -> None:
    """So a run is the same too: all else that it depends on is its seed."""
    # Else images that an earlier run has judged by, or knows the features of, are read no more.
    session_module._IMAGES.clear()
    forget()
    run, plans = small_run(name, train__epochs=2), list[Plan]()

    def noted(plan: Plan, source: Source, step: int) -> Iterator[Batch]:
        plans.append(plan)
        return stream_local(plan, source, step)

    session = Session(run, tmp_path, noted)
    train(session)
    assert (run.plan in plans) == bool(session.state.prompts), "what learns reads the images to learn from"
    assert plans
    for plan in plans:
        here = list(stream_local(plan, run.dataset.source))
        for which in range(len(OPTIONS)):
            for ours, theirs in zip(here, on_ray(which)(plan, run.dataset.source, 0), strict=True):
                assert ours.step == theirs.step
                assert np.array_equal(ours.images, theirs.images)
                assert np.array_equal(ours.labels, theirs.labels)


@pytest.mark.parametrize("name", ["prometar", "cocoop"])
def test_the_number_of_stream_workers_makes_no_difference(
    name: str, on_ray: Callable[[int], Stream], tmp_path: Path
) -> None:
    run = small_run(name, train__epochs=2)
    here = Session(run, tmp_path / "here")
    history = without_time(train(here))
    for which in range(len(OPTIONS)):
        there = Session(run, tmp_path / f"{which}", on_ray(which))
        assert without_time(train(there)) == history
        for key, tensor in here.state.tensors().items():
            assert torch.equal(tensor, there.state.tensors()[key]), key
