"""Gradient alignment: its definition, its records in a run, and the command that plots them.

Alignment is the cosine of the gradients of the two batches of a meta phase: support and query.
"""

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


def first_batch(run: Run, labels: tuple[int, ...]) -> Batch:
    """Return the first training images of a run, with other labels."""
    images = next(stream_local(run.order, run.dataset.source)).images
    return Batch(0, images, np.array(labels))


def with_random_gate(state: State) -> State:
    """Return a state whose gate is not at its start, where it weighs all gradients equally."""
    generator = torch.Generator().manual_seed(0)
    gate = {}
    for name, tensor in state.gate.items():
        gate[name] = tensor + torch.randn(tensor.shape, generator=generator).to(tensor)
    return replace(state, gate=gate)


def flat(gradients: dict[str, Tensor], tower: str = "") -> Tensor:
    """Return the gradients of a tower ("text", "vision", or "" for both) as one vector."""
    return torch.cat([gradient.flatten() for name, gradient in gradients.items() if name.startswith(tower)])


def cosine(support: dict[str, Tensor], query: dict[str, Tensor], tower: str = "") -> float:
    """Return the cosine of the gradients of a tower (see `flat`)."""
    return float(F.cosine_similarity(flat(support, tower), flat(query, tower), dim=0))


def test_alignment_is_the_cosine_of_gradients_of_the_released_code() -> None:
    backbone, method, model, start = make({})
    run = replace(small_run(), backbone=backbone, method=method, model=model)
    state = with_random_gate(start)
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)

    found = measure_alignment(run, state, Batch(0, pixels, np.array([0, 1, 1, 2])))

    # The gradients of the released code on the same support and query images.
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
    assert found["support_norm"] == pytest.approx(float(flat(support).norm()), rel=1e-12)
    assert found["query_norm"] == pytest.approx(float(flat(query).norm()), rel=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_alignment_is_measured_for_each_tower_in_which_a_method_learns(method: str) -> None:
    run = small_run(method, train__batch_size=4)
    state = initial_state(run)

    found = measure_alignment(run, state, first_batch(run, (0, 1, 1, 2)))

    if not state.leaves:
        assert found is None
        return
    assert found is not None
    towers = {"text", "vision"}
    towers_of_leaves = {name.split(".")[0] for name in state.leaves}
    assert towers & towers_of_leaves == towers & found.keys()
    for key in {"cosine", "text", "vision"} & found.keys():
        assert -1 <= found[key] <= 1
    assert found["query_norm"] > 0


def test_a_batch_of_one_class_has_no_alignment() -> None:
    """Support and query images would need different classes."""
    run = small_run()
    assert measure_alignment(run, initial_state(run), first_batch(run, (1, 1, 1, 1))) is None


@pytest.mark.parametrize("values", [{}, {"inner__kind": "none"}], ids=["meta phase", "no meta phase"])
def test_a_run_whose_alignment_is_recorded_has_the_same_results(
    values: dict[str, Any], tmp_path: Path
) -> None:
    run = small_run(train__epochs=2, **values)
    folder = tmp_path / "recorded"
    plain = Session(run, tmp_path / "plain")
    recorded = Session(run, folder, before_step=AlignmentRecorder(folder, every=1))

    assert without_time(train(plain)) == without_time(train(recorded))

    for name, tensor in plain.state.tensors().items():
        assert torch.equal(tensor, recorded.state.tensors()[name]), name
    records = read_alignment(folder / ALIGNMENT_FILE)
    assert {record["step"] for record in records} <= set(range(run.order.num_steps))
    assert {record["epoch"] for record in records} == {1, 2}


def test_an_interrupted_run_has_the_records_of_one_that_never_stopped(tmp_path: Path) -> None:
    run = small_run(train__epochs=2)
    whole = tmp_path / "whole"
    parts = tmp_path / "parts"
    train(Session(run, whole, before_step=AlignmentRecorder(whole, every=1)))
    recorder = AlignmentRecorder(parts, every=1)

    def record_and_stop(run: Run, state: State, batch: Batch) -> None:
        recorder(run, state, batch)
        # In the second epoch, whose steps are run again after the interruption.
        if state.step == run.order.steps_per_epoch + 1:
            raise KeyboardInterrupt

    # The run is killed while it writes its last record.
    with pytest.raises(KeyboardInterrupt):
        train(Session(run, parts, before_step=record_and_stop))
    text = (parts / ALIGNMENT_FILE).read_text()
    (parts / ALIGNMENT_FILE).write_text(text[:-20])
    assert len(read_alignment(parts / ALIGNMENT_FILE)) == text.count("\n") - 1

    train(Session(run, parts, before_step=AlignmentRecorder(parts, every=1)))
    assert (parts / ALIGNMENT_FILE).read_text() == (whole / ALIGNMENT_FILE).read_text()


def write_records(folder: Path, cosines: list[float]) -> Path:
    """Write records of alignment, one in 20 steps and two in an epoch. Return the folder."""
    folder.mkdir()
    lines = []
    for number, value in enumerate(cosines):
        record = {"step": 20 * number, "epoch": 1 + number // 2, "cosine": value}
        lines.append(json.dumps(record) + "\n")
    (folder / ALIGNMENT_FILE).write_text("".join(lines))
    return folder


def test_the_command_summarizes_and_plots_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    three_records = write_records(tmp_path / "<b>", [0.1, 0.3, 0.5])
    one_record = write_records(tmp_path / "other", [-0.25])
    page = tmp_path / "plot.html"

    assert main(["alignment", str(three_records), str(one_record), "--to", str(page)]) == 0

    printed = capsys.readouterr().out
    quarters = "mean 0.300 over 3 records, 0.100 in the first quarter, 0.500 in the last, positive in 100%"
    assert (
        f"{three_records}: gradient alignment (cosine of support and query gradient): {quarters}" in printed
    )
    assert f"{one_record}: gradient alignment (cosine of support and query gradient): mean -0.250" in printed
    *_, script_of_plot, _ = page.read_text("utf-8").split("</script>")
    assert "<b>" not in script_of_plot, "names are escaped"


def test_a_plot_shows_means_of_records(tmp_path: Path) -> None:
    folder = write_records(tmp_path / "run", [0.1, 0.3, 0.5])
    page = render_page({"run": read_alignment(folder / ALIGNMENT_FILE)})
    # Epoch 1 has the steps 0 and 20, and epoch 2 has step 40.
    assert '"x":[10.0,40.0],"y":[0.2,0.5]' in page.replace(" ", "")


def refusal(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run a command, which must refuse its arguments in one line. Return the line."""
    assert main(args) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_a_folder_without_records_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(["alignment", "nowhere"], capsys)
    assert "Run `prometar train --alignment-every 20 --out" in line


def test_alignment_of_a_method_without_prompts_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["train", "--method", "zero-shot", "--alignment-every", "2", "--out", str(tmp_path / "run")]
    line = refusal(args, capsys)
    assert "--alignment-every requires learnable prompts. zero-shot has none" in line


def test_a_pipe_in_place_of_records_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / ALIGNMENT_FILE)  # reading it would wait forever
    line = refusal(["alignment", str(tmp_path)], capsys)
    assert f"Cannot read {tmp_path / ALIGNMENT_FILE}" in line
