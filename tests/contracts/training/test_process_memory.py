"""What a run takes of a machine's memory, before it begins."""

import pytest

from prometar.config.settings import Config
from prometar.data.datasets.dataset import Item
from prometar.data.splits.objective import Problem
from prometar.kept import Kept
from prometar.training import process_memory as module
from prometar.training import session
from prometar.training.process_memory import PROCESSES, Held, Memory, memory_of, process_memory
from prometar.training.run import DTYPES
from prometar.training.session import kept_bytes
from tests.support.small import BACKBONE

WEIGHTS = 200 * 2**20


def test_small_weights_stand_for_what_they_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_of", None)
    assert process_memory(Config(), Held(2**20, 12)) == PROCESSES + 5 * 2**20


def test_large_ones_are_counted() -> None:
    small = Config().override({**BACKBONE, "method": "coop"})
    needed = process_memory(small, Held(WEIGHTS, 12))
    assert needed == PROCESSES + memory_of(small, num_classes=12).peak


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_they_are_counted_with_precision(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, counted = Config().override({"backbone.precision": precision}), list[object]()

    def memory_of(of: Config, **named: object) -> Memory:
        counted.append((of, named))
        return Memory(1, 1000)

    monkeypatch.setattr(module, "memory_of", memory_of)
    needed = process_memory(config, Held(WEIGHTS, 12))
    assert needed == PROCESSES + 1000
    named = {"num_classes": 12, "dtype": DTYPES[precision]}
    assert counted == [(config, named)]


def test_on_a_gpu_the_machine_holds_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_of", None)
    needed = process_memory(Config(), Held(WEIGHTS, 12), on_gpu=True)
    assert needed == PROCESSES + WEIGHTS
    assert process_memory(Config(), Held(WEIGHTS, 12, images=7), on_gpu=True) == needed + 7


def test_images_that_are_kept_are_counted_once_and_to_their_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    ten, hundred = (tuple(Item(f"{k}.jpg", 0, "cat") for k in range(count)) for count in (10, 100))
    split = Problem((), {"base": ten, "new": hundred}, every_epoch=True)
    other = Problem((), {"base": ten}, every_epoch=False)
    assert kept_bytes([split, other], 8) == 110 * 3 * 64
    most = 50 * 3 * 64
    monkeypatch.setattr(session, "_IMAGES", Kept(most=4 * most, most_each=most))
    assert kept_bytes([split, other], 8) == 10 * 3 * 64, "a set above a quarter of all is not kept"


def test_what_cannot_be_counted_is_taken_from_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("needs data")

    monkeypatch.setattr(module, "memory_of", fail)
    assert process_memory(Config(), Held(WEIGHTS, 12)) == PROCESSES + 5 * WEIGHTS
