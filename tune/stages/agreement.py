"""A study's database and its records tell of the same trials, or nothing is run and nothing overwritten."""

from itertools import count
from pathlib import Path

from prometar.errors import UserError
from prometar.io.stores import masked
from tune.optimizer.rebuild import kept_in, odd_records, rebuild
from tune.results.reader import read_study, read_trials
from tune.results.writer import StudyFolder
from tune.study_spec import StudySpec

_MOST_BEGUN = 256  # trials without a record behind the last that has one


def require_agreement(folder: StudyFolder, storage: str, spec: StudySpec, *, from_records: bool) -> str:
    """Compare the recorded trials with those of the database; what to tell the user of a rebuilt one, or "".

    Raises:
        UserError: the database has lost recorded trials or has others, and `from_records` is not set; or it
            is not the folder's own, and cannot be put aside; or it is set, and there is no study.yaml.
    """
    records = read_trials(folder.path)
    if from_records and not folder.begun:
        no_study = "no study: leave it out to begin one"
        found = "records without their study.yaml: restore it" if records else no_study
        raise UserError(f"--from-records: {folder.path} holds {found}")
    held, trials = kept_in(storage, folder.name) if records else (set(), [])
    odd = odd_records(trials, records)
    if not odd:
        return ""
    own, database = storage == folder.storage, folder.path / "study.db"
    if own and held and folder.name not in held:
        raise UserError(f"{database} holds the study {', '.join(sorted(held))}: give the folder this name")
    where = database if own else masked(storage)
    lost = (
        f"the study {folder.path} has records of {len(records)} trials, and its database {where} "
        f"lacks {len(odd)} of them or has others in their place (trial {odd[0]})"
    )
    if not from_records:
        first = "" if folder.begun else "restore study.yaml and "
        raise UserError(f"{lost}: restore the database, or {first}rebuild it with --from-records")
    before = read_study(folder.path)
    aside = _put_aside(database) if own else None
    rebuild(
        storage,
        folder.name,
        records,
        spec,
        at_least=1 + _last_begun(folder, records[-1].number),
        forgiven=before.forgiven,
        seconds_searched=before.seconds_searched,
    )
    kept = f"; what was there is now {aside.name}" if aside else ""
    return f"the database has been rebuilt from {len(records)} records{kept}"


def _last_begun(folder: StudyFolder, recorded: int) -> int:
    """The highest number of a begun trial; a folder far beyond the recorded ones is no trial's."""
    names = (path.name for path in (folder.path / "trials").iterdir() if path.name.isdecimal())
    return max(number for number in map(int, names) if number <= recorded + _MOST_BEGUN)


def _put_aside(database: Path) -> Path | None:
    """Rename a database; None where there is none."""
    if not database.exists():
        return None
    names = (database.with_name(f"{database.name}.before-{number}") for number in count(1))
    return database.rename(next(name for name in names if not name.exists()))
