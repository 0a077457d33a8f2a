"""Where tests keep studies that no command has begun: making a database takes Optuna forty statements."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import optuna
from optuna.storages import InMemoryStorage, RDBStorage

from tune.optimizer.storage import backend_of


def new_database(folder: Path) -> str:
    """The URL of FOLDER/study.db, a copy of an empty one where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.db"
    if not path.exists():
        path.write_bytes(_empty())
    return f"sqlite:///{path}"


@cache
def _empty() -> bytes:
    with TemporaryDirectory() as folder:
        storage = RDBStorage(f"sqlite:///{folder}/study.db")
        storage.engine.dispose()
        return Path(folder, "study.db").read_bytes()


def open_study(url: str, name: str) -> optuna.Study:
    """The study `name` as it is there at each moment: what is read is asked of the storage itself."""
    return optuna.load_study(storage=backend_of(url), study_name=name)


@cache
def remembered(folder: Path) -> Any:
    """A storage without a database, for what a study draws and decides; the same again for a folder."""
    return InMemoryStorage()
