"""Checkpoints: a run's complete state in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from prometar.device import fetch
from prometar.errors import WorkError
from prometar.io.files import write_atomically
from prometar.step.state import State

FORMAT = "prometar-run-1"


@dataclass(frozen=True)
class Checkpoint:
    """A state, the records of the epochs that led to it, and the digest of the run it belongs to."""

    state: State
    history: tuple[dict[str, Any], ...]
    run: str


def save_checkpoint(path: Path, state: State, history: Sequence[dict[str, Any]], *, run: str) -> None:
    """Write the state, the epochs' records and the run's digest to `path`."""
    tensors = {name: tensor.contiguous() for name, tensor in fetch(state.tensors()).items()}
    metadata = {
        "format": FORMAT, "run": run, "step": str(state.step), "history": json.dumps(list(history))
    }  # fmt: skip
    write_atomically(path, save(tensors, metadata))


def load_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None where there is none.

    Raises:
        WorkError: the file is damaged, or is no checkpoint of this project.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned into torch's own alignment: kernels sum in another order over unaligned memory.
            tensors = {name: file.get_tensor(name).clone() for name in file.offset_keys()}
        if metadata.get("format") != FORMAT:
            raise WorkError(f"{path} is no checkpoint of this version: remove it to start this run over")
        state = State.from_tensors(tensors, int(metadata["step"]))
        return Checkpoint(state, tuple(json.loads(metadata["history"])), metadata["run"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise WorkError(
            f"the checkpoint {path} is damaged ({reason}): remove it to start this run over"
        ) from None
