"""The whole path on an accelerator: nothing mixes with the host, and nothing waits but where it must.

See `tests.support.accelerator`: any machine has it. Values there are those of the host, so runs compare too.
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
TINY = PLAIN.folded()
USERS = ("prometar.training.backbone", "prometar.inference.classifier")


def tiny(*args: object, dtype: torch.dtype, device: torch.device, folded: bool) -> Backbone:
    return Backbone("tiny", (TINY if folded else PLAIN).to(device=device, dtype=dtype))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traffic]:
    """Runs are built on the accelerator; a step that asks, copies or makes a tensor of the host fails."""
    with accelerator() as traffic:
        for user in USERS:
            monkeypatch.setattr(f"{user}.default_device", lambda: DEVICE)
        monkeypatch.setattr(backbone_module, "load_backbone", tiny)
        monkeypatch.setattr(epoch, "step", quiet(epoch.step, traffic))
        yield traffic


def quiet(function: Callable[..., Any], seen: Traffic) -> Callable[..., Any]:
    """The function, which must leave the host alone."""

    def call(*args: Any, **kwargs: Any) -> Any:
        before = len(seen.copies), len(seen.waits), len(seen.made)
        result = function(*args, **kwargs)
        new = seen.copies[before[0] :], seen.waits[before[1] :], seen.made[before[2] :]
        assert new == ([], [], []), f"inside the step: {new}"
        return result

    return call


@pytest.mark.parametrize(
    ("precision", "method"),
    [*(("fp32", method) for method in METHODS), *product(("fp64", "bf16", "fp16"), ("prometar", "cocoop"))],
)
def test_an_epoch_copies_once_a_batch_and_waits_once(
    method: str, precision: str, seen: Traffic, tmp_path: Path
) -> None:
    """A copy for each batch; a wait for the losses, for each score, and for the checkpoint."""
    run = small_run(method, objective="base_val", backbone__precision=precision, **SMALL)
    assert run.backbone.clip.device == DEVICE
    # As after the first image: the constants of its backbone are where that is.
    run.backbone.normalize(torch.zeros(1, 16, 16, 3, dtype=torch.uint8, device=DEVICE))
    session = Session(run, tmp_path)
    seen.clear()
    session.run_epoch()
    steps = run.order.steps_per_epoch if session.state.leaves else 0
    scored = [each.order.steps_per_epoch for each in run.evaluations.values()]
    assert len(seen.copies) == steps + sum(scored), seen.copies
    assert len(seen.waits) == len(scored) + (2 if steps else 0), seen.waits


@pytest.mark.parametrize("method", ["prometar", "promptsrc", "maple"])
def test_a_run_there_equals_one_here(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(folder: Path) -> Session:
        """By two sessions: the second goes on from the first one's checkpoint."""
        run = small_run(method, backbone__precision="fp64", **SMALL)
        for _ in range(2):
            session = Session(run, folder)
            session.run_epoch()
        return session

    monkeypatch.setattr(backbone_module, "load_backbone", tiny)
    here = trained(tmp_path / "here")
    with accelerator():
        monkeypatch.setattr(backbone_module, "default_device", lambda: DEVICE)
        there = trained(tmp_path / "there")
        assert there.finished
        for ours, its in zip(without_time(there.history), without_time(here.history), strict=True):
            assert ours == pytest.approx(its, rel=1e-9)
        for name, tensor in to_cpu(there.state.tensors()).items():
            torch.testing.assert_close(tensor, here.state.tensors()[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "planted",
    [
        lambda a: a * (1 + 0 * a.detach().sum().item()),
        lambda a: a * torch.ones(a.shape[-1]),
        lambda a: a * torch.tensor(1.0, device=a.device),
        lambda a: a[a.detach().sum(dim=-1).isfinite()],
    ],
    ids=["item", "host tensor", "sent scalar", "mask"],
)
def test_what_a_gpu_would_wait_for_is_found_in_the_step(
    planted: Callable[[Tensor], Tensor], seen: Traffic, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = logits_module.weighted_cross_entropy
    monkeypatch.setattr(
        logits_module, "weighted_cross_entropy", lambda logits, *rest: plain(planted(logits), *rest)
    )
    run = small_run(**SMALL)
    with pytest.raises((AssertionError, MixedDevices), match=r"inside the step|mixes host and accelerator"):
        Session(run, tmp_path).run_epoch()


def test_a_parcel_keeps_every_kind_of_tensor(seen: Traffic) -> None:
    half = torch.arange(3).half()
    packed = {"a": [half, torch.tensor(True)], "b": (torch.zeros(2, 0), None), "c": torch.eye(3)[:2].T}
    sent = send({**packed, "d": half}, DEVICE)
    assert len(seen.copies) == 1
    assert sent["a"][0] is sent["d"]
    back = to_cpu(sent)
    assert len(seen.waits) == 1
    torch.testing.assert_close(back, {**packed, "d": half}, rtol=0, atol=0)


def test_a_step_that_runs_out_of_memory_succeeds_with_a_larger_share(
    seen: Traffic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the part `out-of-memory` of `make gpu` does, on an accelerator whose memory is limited."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[3] / "benchmarks"))
    parts = importlib.import_module("gpu_parts")
    run = small_run(**SMALL)
    before = allocated_bytes()
    total = before + 100 * 2**20
    with ExitStack() as limits:

        def limit(share: float) -> None:
            limits.enter_context(memory_limit(int(share * total)))

        found = parts.retried(lambda: parts.steps_within(run, 0.0), limit, (before + 2**16) / total)
    assert found["succeeded"], found
    assert found["recognized"]
    assert len(found["shares"]) > 1
