"""Training on an accelerator: no operation mixes it with the host, and the host waits for it only if needed.

The accelerator of `tests.support.accelerator` is simulated, so these tests need no GPU. It computes with the
host's numbers.
"""

import importlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prometar.clip.openclip import Backbone
from prometar.config.recipes import METHODS
from prometar.device import send, to_cpu
from prometar.methods import logits as logits_module
from prometar.training import backbone as backbone_module
from prometar.training import epoch
from prometar.training.session import Session
from tests.support.accelerator import (
    DEVICE,
    MixedDevices,
    Traffic,
    accelerator,
    allocated_bytes,
    memory_limit,
)
from tests.support.small import small_run, without_time
from tests.support.tiny import open_clip_model, towers

SMALL: dict[str, Any] = {"train__epochs": 2, "train__batch_size": 6, "data__shots": 1}
PLAIN = towers(open_clip_model(layers=2))
FOLDED = PLAIN.folded()
MODULES_WITH_DEVICES = ("prometar.training.backbone", "prometar.inference.classifier")


def tiny(*args: object, dtype: torch.dtype, device: torch.device, folded: bool) -> Backbone:
    """Return a tiny backbone, in place of `load_backbone`."""
    clip = FOLDED if folded else PLAIN
    return Backbone("tiny", clip.to(device=device, dtype=dtype))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    """The traffic between host and accelerator, on which runs are built.

    A training step fails that waits for the accelerator, copies a tensor to it, or creates one on the host.
    """
    with accelerator() as traffic:
        for module in MODULES_WITH_DEVICES:
            monkeypatch.setattr(f"{module}.default_device", lambda: DEVICE)
        monkeypatch.setattr(backbone_module, "load_backbone", tiny)
        monkeypatch.setattr(epoch, "step", without_traffic(epoch.step, traffic))
        yield traffic


def without_traffic(function: Callable[..., Any], seen: Traffic) -> Callable[..., Any]:
    """Return a function that fails if the given one causes traffic between host and accelerator."""

    def call(*args: Any, **kwargs: Any) -> Any:
        num_copies = len(seen.copies)
        num_waits = len(seen.waits)
        num_made = len(seen.made)
        result = function(*args, **kwargs)
        new = (seen.copies[num_copies:], seen.waits[num_waits:], seen.made[num_made:])
        assert new == ([], [], []), f"inside the step: {new}"
        return result

    return call


CASES = [("fp32", method) for method in METHODS]
CASES += product(("fp64", "bf16", "fp16"), ("prometar", "cocoop"))


@pytest.mark.parametrize(("precision", "method"), CASES)
def test_an_epoch_copies_each_batch_once_and_waits_only_for_results(
    method: str, precision: str, seen: Traffic, tmp_path: Path
) -> None:
    run = small_run(method, objective="base_val", backbone__precision=precision, **SMALL)
    assert run.backbone.clip.device == DEVICE
    # The first image of a process also copies constants of the backbone, which does not count.
    run.backbone.normalize(torch.zeros(1, 16, 16, 3, dtype=torch.uint8, device=DEVICE))
    session = Session(run, tmp_path)
    seen.clear()

    session.run_epoch()

    num_scoring_batches = sum(each.order.steps_per_epoch for each in run.evaluations.values())
    num_training_batches = 0
    num_waits = len(run.evaluations)  # for each score
    if session.state.leaves:
        num_training_batches = run.order.steps_per_epoch
        num_waits += 2  # for the losses and for the checkpoint
    assert len(seen.copies) == num_training_batches + num_scoring_batches, seen.copies
    assert len(seen.waits) == num_waits, seen.waits


@pytest.mark.parametrize("method", ["prometar", "promptsrc", "maple"])
def test_a_run_on_the_accelerator_equals_a_run_on_the_host(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained(folder: Path) -> Session:
        """Train in two sessions. The second one resumes from the checkpoint of the first one."""
        run = small_run(method, backbone__precision="fp64", **SMALL)
        for _ in range(2):
            session = Session(run, folder)
            session.run_epoch()
        return session

    monkeypatch.setattr(backbone_module, "load_backbone", tiny)
    on_host = trained(tmp_path / "host")
    expected = on_host.state.tensors()
    with accelerator():
        monkeypatch.setattr(backbone_module, "default_device", lambda: DEVICE)
        on_accelerator = trained(tmp_path / "accelerator")

        assert on_accelerator.finished
        records = without_time(on_accelerator.history)
        for record, expected_record in zip(records, without_time(on_host.history), strict=True):
            assert record == pytest.approx(expected_record, rel=1e-9)
        for name, tensor in to_cpu(on_accelerator.state.tensors()).items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "planted",
    [
        lambda logits: logits * (1 + 0 * logits.detach().sum().item()),
        lambda logits: logits * torch.ones(logits.shape[-1]),
        lambda logits: logits * torch.tensor(1.0, device=logits.device),
        lambda logits: logits[logits.detach().sum(dim=-1).isfinite()],
    ],
    ids=["item", "host tensor", "sent scalar", "mask"],
)
def test_an_operation_that_a_gpu_waits_for_is_found_in_the_step(
    planted: Callable[[Tensor], Tensor], seen: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operation that a GPU would wait for is inserted before the loss."""
    cross_entropy = logits_module.weighted_cross_entropy

    def with_planted(logits: Tensor, *others: Any) -> Tensor:
        return cross_entropy(planted(logits), *others)

    monkeypatch.setattr(logits_module, "weighted_cross_entropy", with_planted)
    run = small_run(**SMALL)

    with pytest.raises((AssertionError, MixedDevices), match=r"inside the step|mixes host and accelerator"):
        Session(run, tmp_path).run_epoch()


def test_tensors_of_all_kinds_are_sent_in_one_copy_and_come_back_equal(seen: Traffic) -> None:
    half = torch.arange(3).half()
    tensors = {
        "list": [half, torch.tensor(True)],
        "tuple": (torch.zeros(2, 0), None),
        "transposed": torch.eye(3)[:2].T,
        "same as in the list": half,
    }

    sent = send(tensors, DEVICE)
    assert len(seen.copies) == 1
    assert sent["list"][0] is sent["same as in the list"]

    returned = to_cpu(sent)
    assert len(seen.waits) == 1
    torch.testing.assert_close(returned, tensors, rtol=0, atol=0)


def test_a_step_that_runs_out_of_memory_succeeds_with_a_larger_share(
    seen: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part `out-of-memory` of `make gpu` does the same on a GPU. Here, the memory is limited."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    parts = importlib.import_module("gpu_parts")
    run = small_run(**SMALL)
    before = allocated_bytes()
    total = before + 100 * 2**20
    with ExitStack() as limits:

        def limit(share: float) -> None:
            limits.enter_context(memory_limit(int(share * total)))

        # The first share is too small.
        found = parts.retried(lambda: parts.steps_within(run, 0.0), limit, (before + 2**16) / total)
    assert found["succeeded"], found
    assert found["recognized"]
    assert len(found["shares"]) > 1
