"""`Released`, a plain transcription of ProMetaR's published loop, must match recordings of that loop.

Our step must match `Released`, also for random settings of which there is no recording.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from prometar.clip.openclip import tokenize
from prometar.config.settings import Config
from prometar.methods.composition import build
from prometar.step.iteration import step
from prometar.step.meta_batch import embed_batch, leave_one_class_out
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.step.state import State
from prometar.step.updates import Rates
from tests.support.tiny import backbone

from .golden import golden_files, load
from .released import Released

CLASSES = ("banded", "polka-dotted", "annual crop land", "woven")


@pytest.mark.parametrize("path", golden_files("prometar_*.npz"), ids=lambda path: path.name)
def test_the_transcription_equals_the_recording(path: Path) -> None:
    golden = load(path, torch.float64)
    meta = golden.meta
    texts = [f"{meta['ctx_init']} {name}." for name in meta["classnames"]]
    reference = Released(
        clip=golden.raw_clip,
        tokens=tokenize(texts),
        teacher=F.normalize(golden.tensor("teacher_text"), dim=-1),
        prompts=golden.prompts(0),
        gate=golden.gate(0),
        text_weight=meta["text_weight"],
        image_weight=meta["image_weight"],
        reduction=meta["gate_reduction"],
        inner_lr=meta["inner_lr"],
        outer_weight=meta["outer_weight"],
        prompt_lr=meta["prompt_lr"],
        gate_lr=meta["gate_lr"],
    )
    for index, images, labels, selection in golden.steps():
        losses = reference.step(images, labels, selection)
        for name, loss in losses.items():
            recorded_loss = float(golden.tensor(f"step{index}/{name}"))
            assert loss == pytest.approx(recorded_loss, abs=1e-8), name
        for name, recorded in golden.prompts(index).items():
            torch.testing.assert_close(reference.prompts[name].detach(), recorded, rtol=0, atol=1e-8)


@settings(max_examples=12, deadline=None)
@given(
    text_length=st.integers(1, 6),
    vision_length=st.integers(1, 5),
    text_depth=st.integers(1, 4),
    vision_depth=st.integers(1, 4),
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_the_step_equals_the_transcription_for_any_lengths_depths_and_batches(
    text_length: int, vision_length: int, text_depth: int, vision_depth: int, labels: list[int], seed: int
) -> None:
    chosen_settings: dict[str, Any] = {
        "prompts.text_length": text_length,
        "prompts.vision_length": vision_length,
        "prompts.text_depth": text_depth,
        "prompts.vision_depth": vision_depth,
        "inner.lr": 0.5,
        "inner.outer_weight": 1.0,
    }
    method = build(Config().override(chosen_settings))
    clip = backbone(torch.float64).clip
    generator = torch.Generator().manual_seed(seed)
    random_features = torch.randn(len(CLASSES), clip.embed_dim, dtype=torch.float64, generator=generator)
    frozen_text_CE = F.normalize(random_features, dim=-1)
    texts = prompt_texts(CLASSES, method.prompts, init="a photo of a", template="{}")
    model = build_model(clip.folded(), method, tokenize(texts), frozen_text_CE)
    init_ids = tokenize(["a photo of a"])[0, 1:5]  # four words, after the start token
    prompts = method.prompts.initialize(clip, init_ids, generator)
    state = State.start(prompts, method.modulator.initialize(prompts, generator))
    reference = Released(
        clip=clip,
        tokens=tokenize(texts),
        teacher=frozen_text_CE,
        prompts=state.leaves,
        gate=state.gate,
        # The defaults of our configuration.
        text_weight=50,
        image_weight=20,
        reduction=8,
        inner_lr=0.5,
        outer_weight=1.0,
        prompt_lr=0.02,
        gate_lr=0.05,
    )
    rng = np.random.default_rng(seed)
    for _ in range(2):
        images = torch.randn(len(labels), 3, 16, 16, dtype=torch.float64, generator=generator)
        labels_B = torch.tensor(labels)
        selection = leave_one_class_out(labels_B, method.augmentation, rng, dtype=torch.float64)
        batch, meta_task = embed_batch(model.clip, method, images, labels_B, selection)
        state, losses = step(model, method, state, batch, meta_task, Rates(lr=0.02, gate_lr=0.05))
        reference_losses = reference.step(images, labels_B, selection)
        our_losses = {name: float(loss) for name, loss in losses.items()}
        assert our_losses == pytest.approx(reference_losses, abs=1e-9)
        for name, prompt in reference.prompts.items():
            torch.testing.assert_close(state.leaves[name], prompt.detach(), rtol=0, atol=1e-9)
        for name, matrix in reference.gate.items():
            torch.testing.assert_close(state.gate[name], matrix.detach(), rtol=0, atol=1e-9)
