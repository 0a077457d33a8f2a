"""Settings that a study starts from: files of the user's, and what other studies promise most of."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometar.config.settings import as_number, flatten
from prometar.errors import UserError
from prometar.io.files import resolved, size_of
from prometar.io.yamltext import read_yaml
from tune.results.reader import read_records
from tune.results.schema import LEARNED, EarlierStudy, EarlierTrial, Learned
from tune.results.writer import StudyFolder
from tune.space.spaces import Space
from tune.stages.choice import Belief, Calibration, Promise, of_draws
from tune.stages.learned import Promises, propose

WARM_TRIALS = 5  # that other studies promise most of
FEWEST_TRIALS = 4  # of a study, to learn from


def enqueued(path: Path, space: Space) -> list[dict[str, Any]]:
    """The settings of a YAML file: one mapping, or a list of them.

    A mapping holds settings of the space, dotted or nested; those it leaves out are drawn. A complete
    configuration, such as another study's best.yaml, gives its values of the space's settings.

    Raises:
        UserError: no such file, a setting that is not searched, a value outside its range, or one that may
            be lost: whether it is used hangs on a setting that is left to be drawn.
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
        _require_used(settings, space, where)
        found.append(settings)
    return found


def _require_used(settings: Mapping[str, Any], space: Space, where: str) -> None:
    """Raises a UserError for a value that a draw of what it hangs on may leave out."""
    for key in settings:
        for other, held in space.ranges[key].when.items():
            if other not in settings:
                values = " or ".join(map(str, held))
                raise UserError(f"--enqueue {where}: {key} is used where {other} is {values}: give that too")


def learned_of(folder: StudyFolder, paths: Sequence[Path], space: Space, seed: int) -> Learned | None:
    """What a study learns: what it has kept, else what these studies have measured; None of none.

    Settings that they promise most of are run first, `WARM_TRIALS` of them: figures of other data sets or
    objectives do not compare with this study's.

    Raises:
        UserError: see `to_learn_from`.
    """
    found = to_learn_from(folder, paths, space)
    if isinstance(found, Learned):
        return found
    return Learned(found, tuple(propose(space, found, WARM_TRIALS, seed))) if found else None


def to_learn_from(
    folder: StudyFolder, paths: Sequence[Path], space: Space
) -> Learned | tuple[EarlierStudy, ...]:
    """What a study has kept of others, else what these have measured.

    Raises:
        UserError: see `earlier_study`, `resolved`; the study has begun without them, or its learned.json is
            damaged.
    """
    kept, here = LEARNED.find(folder / "learned.json"), resolved(folder.path)
    asked = {resolved(path): path for path in paths}
    if here in asked:
        raise UserError(f"--warm-start {folder.path}: a study cannot learn from itself")
    if kept is not None:
        known = [each.folder for each in kept.studies]
        if others := asked.keys() - set(map(resolved, known)):
            raise UserError(
                f"--warm-start {asked[min(others)]}: the study {folder.path} has learned from "
                f"{', '.join(known)}: leave it out to go on with that, or begin another with --study NAME"
            )
        for each in kept.starts:
            space.checked(each, what=str(folder / "learned.json"))
        return kept
    if asked and folder.begun:
        raise UserError(
            f"--warm-start: the study {folder.path} has begun without it: leave it out, or begin another "
            "with --study NAME"
        )
    return tuple(earlier_study(path, space) for path in asked.values())


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
        if trial.score is not None
        and not trial.reference
        and not space.ranges.keys().isdisjoint(trial.settings)
    )
    if len(trials) < FEWEST_TRIALS:
        raise UserError(
            f"--warm-start {folder}: finished trials with settings of the space {space.name}, beside the "
            f"released ones: {len(trials)}, {FEWEST_TRIALS} are the fewest that tell anything"
        )
    released = next((trial.score for trial in records.complete if trial.reference), None)
    return EarlierStudy(str(folder), records.asked.datasets, records.asked.objective, trials, released)


def promised(
    settings: Sequence[Mapping[str, Any]],
    studies: Sequence[EarlierStudy],
    space: Space,
    *,
    worth: Promise,
    calibration: Calibration,
    before: Belief,
) -> list[Belief]:
    """What is believed of settings' gains for what other studies of one objective have scored.

    Args:
        worth: Of promises. calibration: Of leads.
        before: What is believed of any draw of the space.
    """
    promises = Promises.of(space, studies)
    leads = [promises.of_a_draw(study) - study.released for study in studies if study.released is not None]
    draws = of_draws(leads, calibration, before)
    return [worth.belief(float(lead), draws) for lead in promises.leads(settings)]
