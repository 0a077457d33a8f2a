"""Checkpoints: a run's complete state in one safetensors file, replaced atomically."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Json, NonNegativeInt, ValidationError
from safetensors.torch import save

from prometar.clip.weights import mismatch, read_tensors
from prometar.device import fetch
from prometar.errors import UserError, WorkError, first_line
from prometar.io.files import size_of, write_atomically
from prometar.io.plain_data import problems_of
from prometar.step.state import State
from prometar.training.run_result import EpochRecord


class _Metadata(BaseModel):
    format: Literal["prometar-run-2"]
    run: str
    weights: str
    step: NonNegativeInt
    history: Json[tuple[EpochRecord, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A state, the records of the epochs before it, and the digests of its run and of the weights."""

    state: State
    history: tuple[EpochRecord, ...]
    run: str
    weights: str


def save_checkpoint(
    path: Path, state: State, history: Sequence[EpochRecord], *, run: str, weights: str
) -> None:
    """Write the state, the epochs' records and the digests to `path`."""
    tensors = {name: tensor.contiguous() for name, tensor in fetch(state.tensors()).items()}
    metadata = {
        "format": "prometar-run-2", "run": run, "weights": weights, "step": str(state.step),
        "history": json.dumps(list(history)),
    }  # fmt: skip
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at `path`, or None if there is none.

    Raises:
        WorkError: the file is corrupt, or of another version.
    """
    if size_of(path) is None:
        return None
    try:
        tensors, found = read_tensors(path, "it is cut off")
        metadata = _Metadata.model_validate(found)
        state = State.from_tensors(tensors, metadata.step)
    except ValidationError as error:
        raise corrupt(path, problems_of(error)) from None
    except (UserError, KeyError) as error:
        raise corrupt(path, first_line(error)) from None
    return Checkpoint(state, metadata.history, metadata.run, metadata.weights)


def corrupt(path: Path, reason: str) -> WorkError:
    """Return the error of a checkpoint that cannot be used."""
    return WorkError(f"The checkpoint {path} is corrupt ({reason}). Remove it to start this run over.")


def require_state(path: Path, found: State, like: State) -> None:
    """
    Raises:
        WorkError: the tensors of the checkpoint at `path` are not finite, or not those of `like`.
    """
    wanted = like.tensors()
    if found.average:
        wanted |= {f"average/{name}": leaf for name, leaf in like.prompts.items()}
    if problem := mismatch(wanted, found.tensors()):
        raise corrupt(path, problem)
