"""Trials that have ended, as callbacks are told of them."""

from typing import Any

from tune.results.schema import Epoch, State, TrialRecord


def ended(number: int, state: State, curve: list[float], **changes: Any) -> TrialRecord:
    """A trial with these objectives by epoch; `changes` are fields of its record."""
    given: dict[str, Any] = {
        "reference": False, "origin": "sampled", "settings": {}, "given": {},
        "objective": curve[-1] if curve else None, "base": None, "new": None, "epoch": len(curve),
        "epochs": tuple(Epoch(epoch, value) for epoch, value in enumerate(curve, start=1)),
        "runs": (), "seconds": 0.0, "cpus": 1.0, "gpus": 0.0, "notes": (), "reason": "",
        "started": None, "ended": None,
    }  # fmt: skip
    return TrialRecord(number=number, state=state, **{**given, **changes})
