"""A study's database and its records tell of the same trials, or nothing is run and nothing overwritten."""

from __future__ import annotations

from pathlib import Path

from prometar.errors import UserError
from prometar.io.stores import masked
from tune.optimizer.rebuild import odd_records, rebuild
from tune.results.reader import read_study, read_trials
from tune.results.writer import StudyFolder
from tune.study_spec import StudySpec


def require_agreement(
    folder: StudyFolder, storage: str, spec: StudySpec, *, from_records: bool
) -> tuple[str, ...]:
    """Compare the recorded trials with those of the database; what to tell the user of a rebuilt one.

    Raises:
        UserError: the database has lost recorded trials or has others, and `from_records` is not set; or it
            is not the folder's own, and cannot be put aside.
    """
    records = read_trials(folder.path)
    odd = odd_records(storage, folder.name, records) if records else []
    if not odd:
        return ()
    shown, own = masked(storage), storage == folder.storage
    where = folder.path / "study.db" if own else shown
    lost = (
        f"the study {folder.path} has records of {len(records)} trials, and its database {where} "
        f"lacks {len(odd)} of them or has others in their place (trial {odd[0]})"
    )
    if not from_records:
        raise UserError(f"{lost}: restore the database, or rebuild it with --from-records")
    before = read_study(folder.path) if folder.begun else None
    aside = _put_aside(folder.path / "study.db") if own else None
    rebuild(
        storage,
        folder.name,
        records,
        space=spec.space,
        goals=spec.goals,
        bounds=spec.bounds,
        at_least=1
        + max(int(path.name) for path in (folder.path / "trials").iterdir() if path.name.isdecimal()),
        forgiven=before.forgiven if before else (),
        seconds_searched=before.seconds_searched if before else 0.0,
    )
    kept = f"; what was there is now {aside.name}" if aside else ""
    return (f"the database has been rebuilt from {len(records)} records{kept}",)


def _put_aside(database: Path) -> Path | None:
    """Rename a database; None where there is none."""
    if not database.exists():
        return None
    taken = len(list(database.parent.glob(f"{database.name}.before-*")))
    return database.rename(database.with_name(f"{database.name}.before-{taken + 1}"))
