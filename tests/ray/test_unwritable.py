"""Each file of a study's folder refused once: one line, nothing lost, and the same command resumes.

Permissions do not bind root, so the refusals are made up; tests/cluster/test_disk.py has real ones.
"""

import errno
import os
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from prometar.errors import StorageError
from tests.support.driver import NAME, records, run_fake

OPTIONS: dict[str, Any] = {
    "trials": 2, "epochs": 2, "top": 1, "settings": {"confirm.seeds": 1}
}  # fmt: skip
WRITTEN = [
    "study.yaml", "trials/0000/record.json", "trials/0001/record.json", "confirmation.json", "best.yaml",
    "finals.json", "report.html",
]  # fmt: skip


class Refusing:
    """Refuses to write each file below a folder the first time, one a command.

    Attributes:
        refused: Their names, in order. now: The one that this command was refused.
    """

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.refused: list[str] = []
        self.now = ""
        reasons = cycle((errno.EACCES, errno.EROFS, errno.ENOSPC))
        opened = Path.open

        def refusing(path: Path, mode: str = "r", *args: Any, **options: Any) -> Any:
            if mode == "wb" and not self.now and path.is_relative_to(folder):
                final = (
                    path.name.removeprefix(".").rpartition(".")[0] if path.name.startswith(".") else path.name
                )
                name = str(path.with_name(final).relative_to(folder))
                if name not in self.refused:
                    self.now = name
                    self.refused.append(name)
                    reason = next(reasons)
                    raise OSError(reason, os.strerror(reason), str(path))
            return opened(path, mode, *args, **options)

        patch.setattr(Path, "open", refusing)


def told(out: Path) -> list[dict[str, Any]]:
    """Records without what the clock says."""
    kept = ("number", "state", "settings", "objective", "epochs")
    return [{key: record[key] for key in kept} for record in records(out)]


def test_every_file_is_refused_once(ray_local: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    whole, _ = run_fake(tmp_path / "whole", **OPTIONS)
    refusing = Refusing(out / NAME, monkeypatch)
    before: list[dict[str, Any]] = []
    for _ in WRITTEN:  # the records in the order in which the trials end
        refusing.now = ""
        with pytest.raises(StorageError) as caught:
            run_fake(out, **OPTIONS)
        assert f"cannot write {out / NAME / refusing.now}: " in str(caught.value)
        assert "\n" not in str(caught.value)
        found = records(out)
        assert [record for record in found if record in before] == before, "a record was lost"
        before = found
    found_finals, _ = run_fake(out, **OPTIONS)
    assert sorted(refusing.refused) == sorted(WRITTEN)
    assert told(out) == told(tmp_path / "whole")
    assert found_finals["selected"] == whole["selected"]
    assert not list(out.rglob(".*")), "half a file was left"
