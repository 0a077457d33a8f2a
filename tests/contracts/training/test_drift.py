"""The objective `drift`: how far the predictions of a prompted CLIP are from those of the frozen CLIP.

Drift is measured on names of a vocabulary that share no word with the classes.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.config.settings import Config
from prometar.errors import UserError, WorkError
from prometar.methods.prompts import Tensors
from prometar.step.prompted_clip import PromptedClip
from prometar.training.drift import drift_by_image, out_of_domain_names
from prometar.training.run import Run, build_run
from prometar.training.session import Session


def run_of(method: str) -> Run:
    """Return a run that starts as the frozen CLIP, because its context is "a photo of a"."""
    config = Config(method=method).override({"prompts.text_length": 4, "data.shots": 1, "train.epochs": 1})
    return build_run(config, "drift", val_per_class=2)


@pytest.fixture(scope="module")
def run() -> Run:
    """A run of CoOp."""
    return run_of("coop")


@pytest.mark.parametrize(("method", "leaf"), [("coop", "text.0"), ("cocoop", "shift.out.bias")])
def test_new_accuracy_is_zero_shot_before_training_and_falls_with_drift(
    method: str, leaf: str, tmp_path: Path
) -> None:
    session = Session(run_of(method), tmp_path)
    prompts = session.state.leaves
    for name in prompts:
        if "shift.out" in name:  # with zeros, texts of CoCoOp do not depend on the image
            prompts[name].zero_()

    before = session.score()
    assert before["divergence"] == pytest.approx(0.0, abs=1e-5)
    assert before["base"] == before["zero_shot"]
    assert before["new"] == pytest.approx(before["zero_shot"], rel=1e-4)

    prompts[leaf].add_(3 * torch.randn(prompts[leaf].shape))
    after = session.score()
    names = out_of_domain_names(session.run.dataset, session.run.backbone.vocabulary)
    largest_divergence = math.log(len(names))
    assert 0.1 < after["divergence"] < largest_divergence
    assert after["new"] < after["zero_shot"]
    # Between the zero-shot accuracy and that of chance among 16 classes.
    weight = after["divergence"] / largest_divergence
    assert after["new"] == pytest.approx((1 - weight) * after["zero_shot"] + weight * 100 / 16)


def test_texts_of_conditional_prompts_are_encoded_batch_by_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All texts at once would need gigabytes for a dataset with many classes and validation images."""
    config = Config(method="cocoop").override({"data.shots": 1, "train.epochs": 1})
    run = build_run(config, "drift", val_per_class=5)
    session = Session(run, tmp_path)
    num_images: list[int] = []  # number of images for which texts were encoded, in each call
    encode = PromptedClip.text_features

    def text_features(model: PromptedClip, tokens: Tensors, frozen_BE: Tensor | None = None) -> Tensor:
        num_images.append(0 if frozen_BE is None else len(frozen_BE))
        return encode(model, tokens, frozen_BE)

    monkeypatch.setattr(PromptedClip, "text_features", text_features)

    # Each batch encodes the texts of the classes and those of the vocabulary.
    score = session.score()
    evaluation = run.evaluations["base"]
    assert len(evaluation.order.items) == 80
    assert num_images == [64, 64, 16, 16]

    # The score is that of a single batch.
    num_images.clear()
    single_batch = replace(evaluation, order=replace(evaluation.order, batch_size=80), cache={})
    session.run = replace(run, evaluations={"base": single_batch})
    assert score == pytest.approx(session.score(), rel=1e-4)
    assert num_images == [80, 80]


def words_of(names: Iterable[str]) -> set[str]:
    """Return the words of names in lower case."""
    return set(" ".join(names).lower().split())


def test_names_for_drift_share_no_word_with_the_classes(run: Run) -> None:
    names = out_of_domain_names(run.dataset, run.backbone.vocabulary)
    assert len(names) > 80
    assert not words_of(names) & words_of(run.dataset.classnames)


def test_a_vocabulary_with_too_few_other_names_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match=r"1 of the \d+ vocabulary names .*Use --objective base_val"):
        out_of_domain_names(run.dataset, [*run.dataset.classnames, "owl"])


def test_logits_that_are_not_finite_have_no_score(run: Run, tmp_path: Path) -> None:
    session = Session(run, tmp_path)
    leaves = {name: torch.full_like(leaf, torch.nan) for name, leaf in session.state.leaves.items()}
    session.state = replace(session.state, leaves=leaves)
    with pytest.raises(WorkError, match="Logits of mini in float32 are not finite"):
        session.score()


def test_drift_is_the_kl_divergence_of_the_probabilities() -> None:
    def features(number: int) -> Tensor:
        return F.normalize(torch.randn(number, 8, dtype=torch.float64), dim=-1)

    image = features(5)
    text = features(7)
    frozen_image = features(5)
    frozen_text = features(7)
    scale = torch.tensor(20.0, dtype=torch.float64)
    found = drift_by_image(image, text, frozen_image_NE=frozen_image, frozen_text_VE=frozen_text, scale=scale)

    p = (scale * frozen_image @ frozen_text.T).softmax(dim=-1)
    q = (scale * image @ text.T).softmax(dim=-1)
    expected = (p * (p / q).log()).sum(dim=-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
