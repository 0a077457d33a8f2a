"""Checkpoints. Each is the complete state of a run in a safetensors file that is replaced atomically."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, InstanceOf, Json, ValidationError
from safetensors.torch import save

from prometar.clip.weights import read_tensors
from prometar.device import to_cpu
from prometar.errors import UserError, WorkError, first_line
from prometar.io.files import file_size, write_atomically
from prometar.io.strict_model import problems_of
from prometar.step.state import State
from prometar.training.run_result import EpochRecord

_COUNTERS = ("step", "prompt_updates", "gate_updates")
"""Keys of the metadata that contain the counters of the state."""


class Checkpoint(BaseModel):
    """State and epoch records of a run.

    Args:
        format: Identifies checkpoints, and the version of their format.
        state: State after the last recorded epoch.
        history: Records of the epochs.
        run_digest: Digest of the fixed inputs (`Run.digest`).
        weights_digest: Digest of the weights of the backbone.
    """

    model_config = ConfigDict(frozen=True)

    format: Literal["prometar-run-2"]
    state: InstanceOf[State]
    history: Json[tuple[EpochRecord, ...]]
    run_digest: str = Field(alias="run")
    weights_digest: str = Field(alias="weights")


def save_checkpoint(
    path: Path, state: State, history: Sequence[EpochRecord], *, run_digest: str, weights_digest: str
) -> None:
    """Write a checkpoint. An existing file is replaced.

    Raises:
        InfrastructureError: the file cannot be written.
    """
    tensors = {name: tensor.contiguous() for name, tensor in to_cpu(state.tensors()).items()}
    metadata = {
        "format": "prometar-run-2",
        "run": run_digest,
        "weights": weights_digest,
        "history": json.dumps(list(history)),
        **{name: str(number) for name, number in state.counters().items()},
    }
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """Return the checkpoint at `path`, or None if there is none.

    Raises:
        WorkError: the file is corrupt, or has the format of another version of prometar.
    """
    if file_size(path) is None:
        return None
    try:
        tensors, metadata = read_tensors(path, "The file may be truncated")
        counters = {name: int(metadata[name]) for name in _COUNTERS if name in metadata}
        state = State.from_tensors(tensors, counters)
        return Checkpoint.model_validate({**metadata, "state": state})
    except ValidationError as error:
        raise checkpoint_error(path, problems_of(error)) from None
    except (UserError, KeyError, ValueError) as error:
        raise checkpoint_error(path, first_line(error)) from None


def checkpoint_error(path: Path, reason: str) -> WorkError:
    """Return the error for a checkpoint that cannot be used."""
    return WorkError(f"Checkpoint {path} is corrupt or outdated ({reason}).", "Remove it to start over.")
