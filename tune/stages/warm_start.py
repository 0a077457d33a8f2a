"""Settings that a study starts from: files of the user's, and what other studies promise most of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prometar.config.settings import as_number, flatten
from prometar.errors import UserError
from prometar.io.files import size_of
from prometar.io.yamltext import read_yaml
from tune.results.reader import read_records
from tune.results.schema import by_score
from tune.space.learned import Scored, propose
from tune.space.spaces import Space

WARM_TRIALS = 5  # that other studies promise most of
FEWEST_TRIALS = 4  # of a study, to learn from


def enqueued(path: Path, space: Space) -> list[dict[str, Any]]:
    """The settings of a YAML file: one mapping, or a list of them.

    A mapping holds settings of the space, dotted or nested; those it leaves out are drawn. A complete
    configuration, such as another study's best.yaml, gives its values of the space's settings.

    Raises:
        UserError: no such file, a setting that is not searched, or a value outside its range.
    """
    if size_of(path) is None:
        raise UserError(f"--enqueue {path}: no such file")
    tree = read_yaml(path)
    entries = tree if isinstance(tree, list) else [tree]
    if not entries or not all(isinstance(entry, dict) and entry for entry in entries):
        raise UserError(f"--enqueue {path}: expected settings and their values, or a list of such mappings")
    found = []
    for number, entry in enumerate(entries, start=1):
        where = f"{path}" if len(entries) == 1 else f"{path}, entry {number}"
        given = flatten(entry)
        if {"method", "data.name"} <= given.keys():
            given = {key: value for key, value in given.items() if key in space.ranges}
        settings = space.checked({key: as_number(value) for key, value in given.items()}, what=where)
        if not settings:
            raise UserError(f"--enqueue {where}: gives no setting of the space {space.name}")
        found.append(settings)
    return found


def warm(folders: Sequence[Path], space: Space, seed: int) -> list[dict[str, Any]]:
    """Settings of this space of which other studies' trials promise most, at most `WARM_TRIALS`.

    They are run here first: figures of other data sets or objectives do not compare with this study's.

    Raises:
        UserError: a folder holds no study, or a damaged one, or no finished trials with settings of this
            space, or its search has read the test images.
    """
    studies = [_scored(folder, space) for folder in folders]
    return propose(space, studies, WARM_TRIALS, seed) if studies else []


def _scored(folder: Path, space: Space) -> Scored:
    try:
        records = read_records(folder)
    except UserError as error:
        raise UserError(f"--warm-start {error}") from None
    if records.leaking:
        raise UserError(f"--warm-start {folder}: its search has read the test images (objective oracle_test)")
    trials = [
        trial for trial in by_score(records.complete) if not space.ranges.keys().isdisjoint(trial.settings)
    ]
    if len(trials) < FEWEST_TRIALS:
        raise UserError(
            f"--warm-start {folder}: finished trials with settings of the space {space.name}: {len(trials)}, "
            f"{FEWEST_TRIALS} are the fewest that tell anything"
        )
    scores = [trial.score or 0.0 for trial in trials]
    return Scored([trial.settings for trial in trials], scores, records.asked.objective)
