"""Drift is nothing before training, and predicts new accuracy by names that share no word with classes."""

import math
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


def of(method: str) -> Run:
    """It begins as the frozen CLIP: its context is "a photo of a"."""
    config = Config(method=method).override({"prompts.text_length": 4, "data.shots": 1, "train.epochs": 1})
    return build_run(config, "drift", val_per_class=2)


@pytest.fixture(scope="module")
def run() -> Run:
    return of("coop")


@pytest.mark.parametrize(("method", "leaf"), [("coop", "text.0"), ("cocoop", "shift.out.bias")])
def test_new_accuracy_is_zero_shot_before_training_and_falls_with_drift(
    method: str, leaf: str, tmp_path: Path
) -> None:
    session = Session(of(method), tmp_path)
    prompts = session.state.leaves
    for name in prompts:
        if "shift.out" in name:  # then no text depends on its image
            prompts[name].zero_()
    score = session.score()
    assert score["divergence"] == pytest.approx(0.0, abs=1e-5)
    assert score["base"] == score["zero_shot"]
    assert score["new"] == pytest.approx(score["zero_shot"], rel=1e-4)
    prompts[leaf].add_(3 * torch.randn(prompts[leaf].shape))
    score = session.score()
    limit = math.log(len(out_of_domain_names(session.run.dataset, session.run.backbone.vocabulary)))
    weight = score["divergence"] / limit
    assert 0.1 < score["divergence"] < limit
    assert score["new"] < score["zero_shot"]
    assert score["new"] == pytest.approx((1 - weight) * score["zero_shot"] + weight * 100 / 16)


def test_texts_of_conditional_prompts_are_encoded_batch_by_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All texts at once would need gigabytes for a dataset with many classes and validation images."""
    config = Config(method="cocoop").override({"data.shots": 1, "train.epochs": 1})
    run = build_run(config, "drift", val_per_class=5)
    session = Session(run, tmp_path)
    num_images: list[int] = []
    encode = PromptedClip.text_features

    def text_features(model: PromptedClip, tokens: Tensors, frozen_BE: Tensor | None = None) -> Tensor:
        num_images.append(0 if frozen_BE is None else len(frozen_BE))
        return encode(model, tokens, frozen_BE)

    monkeypatch.setattr(PromptedClip, "text_features", text_features)
    score = session.score()
    total = len(run.evaluations["base"].order.items)
    assert total == 80
    assert num_images == [64, 64, 16, 16]
    order = replace(run.evaluations["base"].order, batch_size=total)
    whole = replace(run.evaluations["base"], order=order, cache={})
    session.run = replace(run, evaluations={"base": whole})
    at_once = session.score()
    assert num_images[4:] == [80, 80]
    assert score == pytest.approx(at_once, rel=1e-4)


def test_foreign_names_share_no_word_with_the_classes(run: Run) -> None:
    known = {word for name in run.dataset.classnames for word in name.split()}
    names = out_of_domain_names(run.dataset, run.backbone.vocabulary)
    assert len(names) > 80
    assert not known & {word for name in names for word in name.lower().split()}
    with pytest.raises(UserError, match=r"1 of the \d+ vocabulary names .*Use --objective base_val"):
        out_of_domain_names(run.dataset, [*run.dataset.classnames, "owl"])


def test_figures_that_are_not_finite_are_no_score(run: Run, tmp_path: Path) -> None:
    session = Session(run, tmp_path)
    leaves = {name: torch.full_like(leaf, torch.nan) for name, leaf in session.state.leaves.items()}
    session.state = replace(session.state, leaves=leaves)
    with pytest.raises(WorkError, match="Logits of mini in float32 are not finite"):
        session.score()


def test_drift_is_the_kl_divergence_of_the_probabilities() -> None:
    image, text, frozen_image, frozen_text = (
        F.normalize(torch.randn(n, 8, dtype=torch.float64), dim=-1) for n in (5, 7, 5, 7)
    )
    scale = torch.tensor(20.0, dtype=torch.float64)
    found = drift_by_image(image, text, frozen_image_NE=frozen_image, frozen_text_VE=frozen_text, scale=scale)
    p = (scale * frozen_image @ frozen_text.T).softmax(dim=-1)
    q = (scale * image @ text.T).softmax(dim=-1)
    torch.testing.assert_close(found.double(), (p * (p / q).log()).sum(dim=-1), rtol=1e-5, atol=1e-6)
