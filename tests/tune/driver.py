"""Drives a fake study, also as a process that a test can kill: `python -m tests.tune.driver OUT TRIALS`."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from prometar.config import Config
from prometar.console import INTERRUPTED
from tests.tune.fake_trial import BEHAVIOUR, FakeTrial
from tune.folder import StudyFolder
from tune.request import Request
from tune.spaces import parse_space
from tune.study import Place, run_study

NAME = "fake"
SPACE = """
regularizer.kind: {type: choice, choices: [l1, l2, cosine, none]}
regularizer.text_weight: {type: float, low: 0.5, high: 200, log: true}
regularizer.image_weight: {type: float, low: 0.2, high: 100, log: true}
"""


def small_request(
    *, trials: int = 4, epochs: int = 3, seed: int = 3, final_seeds: tuple[int, ...] = (), **changes: Any
) -> Request:
    """A request over three settings; more by Request's names."""
    given: dict[str, Any] = {
        "config": Config().override({"train.epochs": epochs, "train.seed": seed}),
        "space": parse_space("small", SPACE),
        "objective": "class_holdout",
        "seed": seed,
        "pruner": "none",
        "val_per_class": 20,
        "trials": trials,
        "final_seeds": final_seeds,
    }
    return Request(**{**given, **changes})


def run_fake(
    out: Path, request: Request, *, behaviour: dict[str, str] | None = None, **place: Any
) -> tuple[dict[str, Any], str]:
    """A study of the fake trial in OUT/fake. Returns finals.json's content and what was printed."""
    folder = StudyFolder(out, NAME)
    if behaviour is not None:
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder / BEHAVIOUR).write_text(json.dumps(behaviour))
    text = io.StringIO()
    finals = run_study(
        request,
        Place(out=out, name=NAME, **place),
        trainable=FakeTrial,
        console=Console(file=text, width=200, soft_wrap=True),
    )
    return finals, text.getvalue()


def records(out: Path) -> list[dict[str, Any]]:
    """All records of OUT/fake, by number."""
    files = sorted((out / NAME / "trials").glob("*/record.json"))
    return [json.loads(file.read_text()) for file in files]


if __name__ == "__main__":
    # A shell starts its background jobs, and so their children, with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run_fake(Path(sys.argv[1]), small_request(trials=int(sys.argv[2])))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
