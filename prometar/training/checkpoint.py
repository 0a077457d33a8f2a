"""Checkpoints: a run's complete state in one safetensors file, replaced atomically."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prometar.clip.weights import all_finite
from prometar.device import fetch
from prometar.errors import WorkError, first_line
from prometar.io.files import size_of, write_atomically
from prometar.step.state import State
from prometar.training.run_result import HISTORY, EpochRecord

FORMAT = "prometar-run-2"


@dataclass(frozen=True)
class Checkpoint:
    """A state, the records of the epochs that led to it, and the digests of its run and of the weights."""

    state: State
    history: tuple[EpochRecord, ...]
    run: str
    weights: str


def save_checkpoint(
    path: Path, state: State, history: Sequence[dict[str, Any]], *, run: str, weights: str
) -> None:
    """Write the state, the epochs' records and the digests to `path`."""
    tensors = {name: tensor.contiguous() for name, tensor in fetch(state.tensors()).items()}
    metadata = {
        "format": FORMAT, "run": run, "weights": weights, "step": str(state.step),
        "history": json.dumps(list(history)),
    }  # fmt: skip
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None where there is none.

    Raises:
        WorkError: the file is damaged, or is no checkpoint of this project.
    """
    if size_of(path) is None:
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned into torch's own alignment: kernels sum in another order over unaligned memory.
            tensors = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
        if metadata.get("format") != FORMAT:
            raise WorkError(f"{path} is no checkpoint of this version: remove it to start this run over")
        state = State.from_tensors(tensors, _step(metadata["step"]))
        return Checkpoint(state, _history(metadata["history"]), metadata["run"], metadata["weights"])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise damaged(path, first_line(error)) from None


def damaged(path: Path, reason: str) -> WorkError:
    """What is said of a checkpoint that cannot be gone on with."""
    return WorkError(f"the checkpoint {path} is damaged ({reason}): remove it to start this run over")


def require_state(path: Path, found: State, like: State) -> None:
    """
    Raises:
        WorkError: the checkpoint at `path` lacks a tensor of `like`, has one more, or one of another shape or
            kind, or prompts that are not finite.
    """
    wanted, tensors = like.tensors(), found.tensors()
    if found.average:
        wanted |= {f"average/{name}": leaf for name, leaf in like.prompts.items()}
    for name in sorted(wanted.keys() | tensors.keys()):
        was, now = (_kind(each.get(name)) for each in (wanted, tensors))
        if was != now:
            raise damaged(path, f"{name} is {now}, the run's is {was}")
    for name, leaf in found.tested.items():
        if not all_finite(leaf):
            raise damaged(path, f"the prompts {name} are not finite")


def _kind(tensor: Tensor | None) -> str:
    return (
        "missing" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
    )


def _step(text: str) -> int:
    if not text.isdecimal() or len(text) > 15:
        raise ValueError("its step is no number")
    return int(text)


def _history(text: str) -> tuple[EpochRecord, ...]:
    """An epoch's record each, in their order."""
    try:
        history = HISTORY.validate_json(text)
    except ValidationError:
        raise ValueError("its history is no list of records of numbers") from None
    for number, record in enumerate(history, start=1):
        if record.get("epoch") != number or "seconds" not in record:
            raise ValueError(f"its history has no record of epoch {number}")
    return history
