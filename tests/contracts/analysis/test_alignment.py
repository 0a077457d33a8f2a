"""Alignment is what plain gradients say, watching changes nothing, and records survive interruptions."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.analysis.alignment import (
    ALIGNMENT_FILE,
    AlignmentRecorder,
    measure_alignment,
    read_alignment,
    render_page,
)
from prometar.cli.app import main
from prometar.clip.openclip import tokenize
from prometar.config.recipes import METHODS
from prometar.data.streaming.stream import Batch, stream_local
from prometar.methods.task_augmentations import NoAugmentation
from prometar.step.meta_batch import leave_one_class_out, meta_task_rng
from prometar.step.prompted_clip import prompt_texts
from prometar.step.state import State
from prometar.training.run import Run, initial_state
from prometar.training.session import Session
from tests.contracts.step.test_step import CLASSES, make
from tests.parity.released import Released
from tests.support.small import small_run, train, without_time


def pictures(run: Run, labels: tuple[int, ...], step: int = 0) -> Batch:
    """The run's first training images under labels of the test's own."""
    images = next(stream_local(run.order, run.dataset.source)).images
    return Batch(step, images, np.array(labels))


def moved(state: State) -> State:
    """The gate away from its start, so that its two sides weigh differently."""
    generator = torch.Generator().manual_seed(0)
    gate = {k: v + torch.randn(v.shape, generator=generator).to(v) for k, v in state.gate.items()}
    return replace(state, gate=gate)


def cosine(a: dict[str, Tensor], b: dict[str, Tensor], tower: str = "") -> float:
    one, other = (torch.cat([v.flatten() for k, v in g.items() if k.startswith(tower)]) for g in (a, b))
    return float(F.cosine_similarity(one, other, dim=0))


def test_it_is_the_cosine_of_plain_gradients() -> None:
    backbone, method, model, start = make({})
    run = replace(small_run(), backbone=backbone, method=method, model=model)
    state = moved(start)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    found = measure_alignment(run, state, Batch(0, pixels, np.array([0, 1, 1, 2])))
    texts = prompt_texts(CLASSES, method.prompts, init="a photo of a", template="")
    assert model.frozen_text_CE is not None
    reference = Released(
        backbone.clip,
        tokenize(texts),
        model.frozen_text_CE,
        state.leaves,
        state.gate,
        text_weight=50,
        image_weight=20,
        reduction=4,
        inner_lr=0,
        outer_weight=0,
        prompt_lr=0,
        gate_lr=0,
    )
    images = backbone.normalize(torch.from_numpy(pixels))
    labels = torch.tensor([0, 1, 1, 2])
    rng = meta_task_rng(run.config.train.seed, 0)
    task = leave_one_class_out(labels, NoAugmentation(), rng, dtype=images.dtype)
    assert task is not None
    losses = reference.losses(images[task.support_rows], labels[task.support_rows])
    support = {name: leaf.detach() for name, leaf in reference.modulated(losses).items()}
    ce, _, _ = reference.losses(images[task.query_rows], labels[task.query_rows])
    leaves = reference.prompts
    query = dict(zip(leaves, torch.autograd.grad(ce, list(leaves.values())), strict=True))
    assert found is not None
    assert found["cosine"] == pytest.approx(cosine(support, query), abs=1e-12)
    assert found["text"] == pytest.approx(cosine(support, query, "text"), abs=1e-12)
    assert found["vision"] == pytest.approx(cosine(support, query, "vision"), abs=1e-12)
    for name, gradient in (("support", support), ("query", query)):
        norm = torch.cat([leaf.flatten() for leaf in gradient.values()]).norm()
        assert found[f"{name}_norm"] == pytest.approx(float(norm), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_measured_where_it_learns(method: str) -> None:
    run = small_run(method, train__batch_size=4)
    state = initial_state(run)
    found = measure_alignment(run, state, pictures(run, (0, 1, 1, 2)))
    if not state.leaves:
        assert found is None
        return
    assert found is not None
    towers = {"text", "vision"}
    assert towers & {name.split(".")[0] for name in state.leaves} == towers & found.keys()
    assert all(-1 <= found[key] <= 1 for key in {"cosine", "text", "vision"} & found.keys())
    assert found["query_norm"] > 0


def test_a_batch_of_one_class_has_no_task() -> None:
    run = small_run()
    assert measure_alignment(run, initial_state(run), pictures(run, (1, 1, 1, 1))) is None


@pytest.mark.parametrize("values", [{}, {"inner__kind": "none"}], ids=["meta phase", "none"])
def test_watching_changes_nothing(values: dict[str, Any], tmp_path: Path) -> None:
    run = small_run(train__epochs=2, **values)
    blind = Session(run, tmp_path / "blind")
    watched = Session(run, tmp_path / "watched", before_step=AlignmentRecorder(tmp_path / "watched", every=1))
    assert without_time(train(blind)) == without_time(train(watched))
    for name, tensor in blind.state.tensors().items():
        assert torch.equal(tensor, watched.state.tensors()[name]), name
    records = read_alignment(tmp_path / "watched" / ALIGNMENT_FILE)
    assert {record["step"] for record in records} <= set(range(run.order.num_steps))
    assert {record["epoch"] for record in records} == {1, 2}


def test_an_interrupted_run_has_the_records_of_one_that_never_stopped(tmp_path: Path) -> None:
    run = small_run(train__epochs=2)
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    train(Session(run, whole, before_step=AlignmentRecorder(whole, every=1)))
    before_step = AlignmentRecorder(parts, every=1)

    def stopping(run: Run, state: State, pictures: Batch) -> None:
        before_step(run, state, pictures)
        if state.step == run.order.steps_per_epoch + 1:  # in the second epoch: its steps are done again
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(Session(run, parts, before_step=stopping))
    before = (parts / ALIGNMENT_FILE).read_text()
    (parts / ALIGNMENT_FILE).write_text(before[:-20])  # killed while it wrote
    assert len(read_alignment(parts / ALIGNMENT_FILE)) == before.count("\n") - 1
    train(Session(run, parts, before_step=AlignmentRecorder(parts, every=1)))
    assert (parts / ALIGNMENT_FILE).read_text() == (whole / ALIGNMENT_FILE).read_text()


def write(folder: Path, cosines: list[float]) -> Path:
    folder.mkdir()
    lines = [json.dumps({"step": 20 * k, "epoch": 1 + k // 2, "cosine": c}) for k, c in enumerate(cosines)]
    (folder / ALIGNMENT_FILE).write_text("\n".join(lines) + "\n")
    return folder


def test_a_plot_of_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(write(tmp_path / "<b>", [0.1, 0.3, 0.5])), str(write(tmp_path / "other", [-0.25]))]
    assert main(["alignment", *runs, "--to", str(tmp_path / "plot.html")]) == 0
    out = capsys.readouterr().out
    quarters = "mean 0.300 over 3 records, 0.100 in the first quarter, 0.500 in the last, positive in 100%"
    assert f"{runs[0]}: gradient alignment (cosine of support and query gradient): {quarters}" in out
    assert f"{runs[1]}: gradient alignment (cosine of support and query gradient): mean -0.250" in out
    text = (tmp_path / "plot.html").read_text("utf-8")
    assert "<b>" not in text.split("</script>")[-2]
    drawn = render_page({"a": read_alignment(Path(runs[0]) / ALIGNMENT_FILE)})
    assert '"x":[10.0,40.0],"y":[0.2,0.5]' in drawn.replace(" ", "")


def test_wrong_usage_of_alignment_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(args: list[str]) -> str:
        assert main(args) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "Run `prometar train --alignment-every 20 --out" in fails(["alignment", "nowhere"])
    args = ["train", "--method", "zero-shot", "--alignment-every", "2", "--out", str(tmp_path / "run")]
    assert "--alignment-every requires learnable prompts. zero-shot has none" in fails(args)
    folder = write(tmp_path / "pipe", [0.1, 0.2])
    (folder / ALIGNMENT_FILE).unlink()
    os.mkfifo(folder / ALIGNMENT_FILE)  # to read it would wait for ever
    assert f"Cannot read {folder / ALIGNMENT_FILE}" in fails(["alignment", str(folder)])
