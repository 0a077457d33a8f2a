"""Every recorded trajectory of an official trainer, replayed by our composition of the same method.

In float64, these agree within 1e-8: loss, learning rate and prompts of every step, the average of prompts,
the frozen text features, and the logits of base and of new classes with the evaluated prompts.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from prometar.clip.vision import embed_images
from prometar.data.datasets.benchmarks import BENCHMARKS, Benchmark
from prometar.methods.prompts import Leaves
from prometar.step.iteration import Losses, step
from prometar.step.meta_batch import embed_batch
from prometar.step.state import State
from prometar.training.epoch import rates_of

from .official import Official, load_official, official_files

FILES = official_files()
TOLERANCE = 1e-8
every_recording = pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)


def test_there_is_a_recording_of_six_trainers() -> None:
    methods = {load_official(path).meta["method"] for path in FILES}
    assert methods >= {"coop", "vpt", "ivlp", "maple", "kgcoop", "promptsrc"}


@pytest.mark.parametrize("folder", [".", "methods"])
def test_recordings_of_other_names(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    added = tmp_path / folder / "another.npz"
    added.symlink_to(FILES[0])
    monkeypatch.setenv("PROMETAR_GOLDEN", str(tmp_path))
    assert added in official_files()
    assert load_official(added).meta == load_official(FILES[0]).meta


@every_recording
def test_the_trajectory_is_the_official_one(path: Path) -> None:
    run = load_official(path)
    method = run.method
    model = run.model("classnames")
    state = State.start(run.leaves("step0/prompt/"), {})
    assert state.leaves
    for index, images, labels in run.steps():
        epoch, place = divmod(index - 1, run.meta["steps_per_epoch"])
        now = rates_of(run.config, epoch)
        assert now.lr == pytest.approx(float(run.tensor(f"step{index}/lr")), rel=1e-12)
        batch = embed_batch(model.clip, method, images, labels, None)
        state, scalars = step(model, method, state, *batch, now)
        close(total(run, scalars), run.tensor(f"step{index}/loss"))
        close_leaves(state.leaves, run.leaves(f"step{index}/prompt/"))
        if place == run.meta["steps_per_epoch"] - 1:
            average = method.averager(state.average, state.leaves, epoch, run.meta["epochs"])
            state = replace(state, average=average)
            close_average(run, state, epoch)
    assert state.step == run.meta["steps"]
    close_leaves(state.evaluation_leaves, run.leaves("final/prompt/"))
    for names, key in (("classnames", "eval/logits"), ("new_classnames", "eval/new_logits")):
        close(logits(run, names, state.evaluation_leaves), run.tensor(key))


def total(run: Official, scalars: Losses) -> Tensor:
    """Return the minimized loss, computed from the logged scalars."""
    weighted = [w * scalars[f"direct_{term.name}"] for term, w in run.method.regularizer.terms]
    return torch.stack([scalars["direct_ce"], *weighted]).sum()


def close_average(run: Official, state: State, epoch: int) -> None:
    """Compare averages. Until the last epoch, the official one is a partial sum of weighted prompts."""
    recorded = run.leaves(f"epoch{epoch + 1}/gpa/")
    assert bool(recorded) == bool(state.average) == run.has("gauss")
    if recorded:
        share = run.tensor("gauss")[: epoch + 1].sum()
        close_leaves({name: share * leaf for name, leaf in state.average.items()}, recorded)


@torch.no_grad()
def logits(run: Official, names: str, leaves: Leaves) -> Tensor:
    model = run.model(names)
    inputs = run.method.inputs(leaves)
    images = model.image_features(inputs, embed_images(model.clip, run.tensor("eval/images")))
    return model.logits(inputs, model.features(inputs, model.text_features(inputs), images))


@every_recording
def test_initial_values_are_the_official_ones_unless_sampled(path: Path) -> None:
    run = load_official(path)
    official = load_official(path).leaves("step0/prompt/")
    ours = run.method.prompts.initialize(run.clip, run.init_ids, torch.Generator().manual_seed(0))
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in official.items()}
    if "text.0" in ours and len(ours["text.0"]) <= len(run.init_ids):
        assert torch.equal(ours["text.0"], official["text.0"])
    assert equal_pairs(ours) == equal_pairs(official)


def equal_pairs(leaves: Leaves) -> set[tuple[str, str]]:
    """Return the pairs of leaves with equal initial values."""
    pairs = combinations(sorted(leaves), 2)
    return {(a, b) for a, b in pairs if torch.equal(leaves[a], leaves[b])}


@every_recording
def test_frozen_text_features_are_the_official_ones(path: Path) -> None:
    run = load_official(path)
    assert (run.teacher is not None) == run.has("teacher_text")
    if run.teacher is not None:
        close(run.teacher, run.recorded_teacher)
    if run.meta["dataset"]:
        name = run.method.regularizer.template_name
        row = next(row for row in BENCHMARKS.values() if official_name(row) == run.meta["dataset"])
        assert row.templates.get(name, row.template) == run.meta["template"]


def official_name(row: Benchmark) -> str:
    """Return the name of a dataset in the official code."""
    return {"Flowers102": "OxfordFlowers"}.get(row.title, row.title.replace("-", ""))


def close(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=TOLERANCE)


def close_leaves(ours: Leaves, recorded: Leaves) -> None:
    assert ours.keys() == recorded.keys()
    for name, leaf in recorded.items():
        torch.testing.assert_close(ours[name], leaf, rtol=0, atol=TOLERANCE, msg=lambda m, n=name: n + m)
