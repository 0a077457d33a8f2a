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
from tune.results.schema import EarlierStudy, EarlierTrial
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


def earlier_study(folder: Path, space: Space) -> EarlierStudy:
    """What another study has measured of settings of this space.

    Raises:
        UserError: the folder holds no study, or a damaged one, or too few finished trials with settings of
            this space, or its search has read the test images.
    """
    try:
        records = read_records(folder)
    except UserError as error:
        raise UserError(f"--warm-start {error}") from None
    if records.leaking:
        raise UserError(f"--warm-start {folder}: its search has read the test images (objective oracle_test)")
    trials = tuple(
        EarlierTrial(trial.settings, trial.score)
        for trial in records.complete
        if trial.score is not None and not space.ranges.keys().isdisjoint(trial.settings)
    )
    if len(trials) < FEWEST_TRIALS:
        raise UserError(
            f"--warm-start {folder}: finished trials with settings of the space {space.name}: {len(trials)}, "
            f"{FEWEST_TRIALS} are the fewest that tell anything"
        )
    return EarlierStudy(str(folder), records.asked.datasets, records.asked.objective, trials)


def warm(studies: Sequence[EarlierStudy], space: Space, seed: int) -> list[dict[str, Any]]:
    """Settings of this space of which other studies promise most, `WARM_TRIALS` at most; none of no study.

    They are run here first: figures of other data sets or objectives do not compare with this study's.
    """
    return propose(space, scored(studies), WARM_TRIALS, seed) if studies else []


def scored(studies: Sequence[EarlierStudy]) -> list[Scored]:
    """Studies as what is learned from."""
    return [
        Scored(
            [trial.settings for trial in study.trials],
            [trial.score for trial in study.trials],
            study.objective,
        )
        for study in studies
    ]
