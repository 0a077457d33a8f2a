"""Settings that a study starts from: files of the user's, and the best of other studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prometar.config.settings import as_number, flatten
from prometar.errors import UserError
from prometar.io.files import size_of
from prometar.io.yamltext import read_yaml
from tune.results.reader import read_records
from tune.results.schema import by_score
from tune.space.spaces import Space

WARM_TRIALS = 5  # of another study, that are run again here


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


def warm(folder: Path, space: Space) -> list[dict[str, Any]]:
    """The best settings of another study that lie in this space, at most `WARM_TRIALS`, best first.

    They are run again here: figures of other data sets or objectives do not compare with this study's.

    Raises:
        UserError: the folder holds no study, or a damaged one, or no finished trial with settings of this
            space, or its search has read the test images.
    """
    try:
        records = read_records(folder)
    except UserError as error:
        raise UserError(f"--warm-start {error}") from None
    if records.leaking:
        raise UserError(f"--warm-start {folder}: its search has read the test images (objective oracle_test)")
    finished = [trial for trial in records.complete if not trial.reference]
    found: list[dict[str, Any]] = []
    for trial in by_score(finished):
        given = {key: value for key, value in trial.settings.items() if key in space.ranges}
        try:
            settings = space.checked(given, what=str(folder))
        except UserError:
            continue  # outside this space
        if settings and settings not in found:
            found.append(settings)
    if not found:
        raise UserError(f"--warm-start {folder}: no finished trial with settings of the space {space.name}")
    return found[:WARM_TRIALS]
