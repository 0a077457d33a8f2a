"""It makes no difference how a run's images are read: in this process, or by one worker or several."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from prometar.config.recipes import NAMES as METHODS
from prometar.data.streaming.plan import Plan
from prometar.data.streaming.stream import Batch, StreamOptions
from prometar.runs import ray_stream
from prometar.training import session as session_module
from prometar.training.run import Run, forget
from prometar.training.session import Session, Stream
from tests.contracts.training.test_session import local, small_run, train, without_time

OPTIONS = (StreamOptions(block_rows=8, max_tasks=1), StreamOptions(block_rows=16, max_tasks=2))


@pytest.fixture(scope="module")
def on_ray(ray_local: None) -> Callable[[Run, int], Stream]:
    """Streams on Ray by number of OPTIONS; methods of the same plan are given the same batches."""
    made: dict[tuple[str, int], list[Batch]] = {}

    def of(run: Run, which: int) -> Stream:
        def stream(plan: Plan, step: int) -> Iterator[Batch]:
            key = plan.digest, which
            if key not in made:
                made[key] = list(ray_stream(run, OPTIONS[which])(plan, 0))
            return iter(made[key][step:])

        return stream

    return of


@pytest.mark.parametrize("name", METHODS)
def test_every_plan_of_a_run_gives_the_same_batches(
    name: str, on_ray: Callable[[Run, int], Stream], tmp_path: Path
) -> None:
    """So a run is the same too: all else that it depends on is its seed."""
    # Else images that an earlier run has judged by, or knows the features of, are read no more.
    session_module._IMAGES.clear()
    forget()
    run, plans = small_run(name, train__epochs=2), list[Plan]()

    def noted(plan: Plan, step: int) -> Iterator[Batch]:
        plans.append(plan)
        return local(run)(plan, step)

    session = Session(run, tmp_path, noted)
    train(session)
    assert (run.plan in plans) == bool(session.state.prompts), "what learns reads the images to learn from"
    assert plans
    for plan in plans:
        for which in range(len(OPTIONS)):
            for here, there in zip(local(run)(plan, 0), on_ray(run, which)(plan, 0), strict=True):
                assert here.step == there.step
                assert np.array_equal(here.images, there.images)
                assert np.array_equal(here.labels, there.labels)


@pytest.mark.parametrize("name", ["prometar", "cocoop"])
def test_the_number_of_stream_workers_makes_no_difference(
    name: str, on_ray: Callable[[Run, int], Stream], tmp_path: Path
) -> None:
    run = small_run(name, train__epochs=2)
    here = Session(run, tmp_path / "here", local(run))
    history = without_time(train(here))
    for which in range(len(OPTIONS)):
        there = Session(run, tmp_path / f"{which}", on_ray(run, which))
        assert without_time(train(there)) == history
        for key, tensor in here.state.tensors().items():
            assert torch.equal(tensor, there.state.tensors()[key]), key
