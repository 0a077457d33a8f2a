"""Every recorded trajectory of an official trainer, replayed by our composition of the same method.

In float64, these results agree within 1e-8: loss and prompts of every step, the average of prompts, the
frozen text features, and the logits of base and of new classes with the evaluated prompts. Learning rates
agree within a relative error of 1e-12.
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
def test_recordings_in_the_added_folder_can_have_any_name(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / folder).mkdir(exist_ok=True)
    another = tmp_path / folder / "another.npz"
    another.symlink_to(FILES[0])
    monkeypatch.setenv("PROMETAR_GOLDEN", str(tmp_path))
    assert another in official_files()
    assert load_official(another).meta == load_official(FILES[0]).meta


@every_recording
def test_the_trajectory_is_the_official_one(path: Path) -> None:
    run = load_official(path)
    method = run.method
    model = run.model("classnames")
    state = State.start(run.leaves("step0/prompt/"), {})
    assert state.leaves
    for index, images, labels in run.steps():
        epoch, step_in_epoch = divmod(index - 1, run.meta["steps_per_epoch"])
        rates = rates_of(run.config, epoch)
        assert rates.lr == pytest.approx(float(run.tensor(f"step{index}/lr")), rel=1e-12)
        batch, _ = embed_batch(model.clip, method, images, labels, None)
        state, losses = step(model, method, state, batch, None, rates)
        assert_close(minimized_loss(run, losses), run.tensor(f"step{index}/loss"))
        assert_leaves_close(state.leaves, run.leaves(f"step{index}/prompt/"))
        is_last_of_epoch = step_in_epoch == run.meta["steps_per_epoch"] - 1
        if is_last_of_epoch:
            average = method.averager(state.average, state.leaves, epoch, run.meta["epochs"])
            state = replace(state, average=average)
            assert_average_close(run, state, epoch)
    assert state.step == run.meta["steps"]
    assert_leaves_close(state.evaluation_leaves, run.leaves("final/prompt/"))
    for entry, key in (("classnames", "eval/logits"), ("new_classnames", "eval/new_logits")):
        assert_close(logits(run, entry, state.evaluation_leaves), run.tensor(key))


def minimized_loss(run: Official, losses: Losses) -> Tensor:
    """Return the sum of the cross-entropy and the weighted regularizers, given the unweighted losses."""
    terms = [losses["direct_ce"]]
    for term, weight in run.method.regularizer.terms:
        terms.append(weight * losses[f"direct_{term.name}"])
    return torch.stack(terms).sum()


def assert_average_close(run: Official, state: State, epoch: int) -> None:
    """Check our average after an epoch (0-based) against PromptSRC's, the only trainer that averages.

    PromptSRC's weights sum to 1 over all epochs. Until the last epoch, its result is only a part of the
    weighted sum. Ours is always an average, so it is multiplied by the sum of the weights so far.
    """
    recorded = run.leaves(f"epoch{epoch + 1}/gpa/")
    assert bool(recorded) == bool(state.average) == run.has("gauss")
    if recorded:
        weight_so_far = run.tensor("gauss")[: epoch + 1].sum()
        partial_sum = {name: weight_so_far * leaf for name, leaf in state.average.items()}
        assert_leaves_close(partial_sum, recorded)


@torch.no_grad()
def logits(run: Official, entry: str, leaves: Leaves) -> Tensor:
    """Return our logits (B, C) of the evaluated images, for the classes in `run.meta[entry]`."""
    model = run.model(entry)
    inputs = run.method.inputs(leaves)
    images = model.image_features(inputs, embed_images(model.clip, run.tensor("eval/images")))
    return model.logits(inputs, model.features(inputs, model.text_features(inputs), images))


@every_recording
def test_initial_values_are_the_official_ones_unless_sampled(path: Path) -> None:
    run = load_official(path)
    official = run.leaves("step0/prompt/")
    ours = run.method.prompts.initialize(run.clip, run.init_ids, torch.Generator().manual_seed(0))
    our_shapes = {name: leaf.shape for name, leaf in ours.items()}
    official_shapes = {name: leaf.shape for name, leaf in official.items()}
    assert our_shapes == official_shapes
    # The context is sampled if `init` has fewer tokens. Otherwise, it is the embedded `init`.
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
    assert (run.frozen_text is not None) == run.has("teacher_text")
    if run.frozen_text is not None:
        assert_close(run.frozen_text, run.recorded_frozen_text)
    if run.meta["dataset"]:
        benchmark = benchmark_of_official_name(run.meta["dataset"])
        template_name = run.method.regularizer.template_name
        template = benchmark.templates.get(template_name, benchmark.template)
        assert template == run.meta["template"]


def benchmark_of_official_name(name: str) -> Benchmark:
    """Return the benchmark dataset that has this name in the official code."""
    by_official_name = {each.title.replace("-", ""): each for each in BENCHMARKS.values()}
    by_official_name["OxfordFlowers"] = by_official_name["Flowers102"]
    return by_official_name[name]


def assert_close(ours: Tensor, recorded: Tensor) -> None:
    torch.testing.assert_close(ours, recorded, rtol=0, atol=TOLERANCE)


def assert_leaves_close(ours: Leaves, recorded: Leaves) -> None:
    assert ours.keys() == recorded.keys()
    for name, leaf in recorded.items():
        # The default of `leaf_name` keeps the name of this iteration.
        torch.testing.assert_close(
            ours[name],
            leaf,
            rtol=0,
            atol=TOLERANCE,
            msg=lambda message, leaf_name=name: f"{leaf_name}: {message}",
        )
