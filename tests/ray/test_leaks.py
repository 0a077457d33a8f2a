"""A search opens no test image and no image of a new class: none of them need be an image at all."""

from pathlib import Path

import pytest

from prometar.data.datasets.catalog import open_dataset
from prometar.data.splits.objective import SEARCH_OBJECTIVES
from tests.cluster.test_end_to_end import records
from tests.conftest import write_dtd
from tune.records.schema import Confirmation, read_record
from tune.search import main

CLASSES = tuple("abcdefgh")  # the first four are base classes


def arguments(root: Path, out: Path, objective: str) -> list[str]:
    """Of a search; its confirmation reads what its trials do, so one objective's does for all."""
    top = str(int(objective == SEARCH_OBJECTIVES[0]))
    return [
        *("--dataset", "dtd", "--data-root", str(root), "--backbone", "mini", "--objective", objective),
        *("--trials", "2", "--epochs", "1", "--set", "data.shots=2", "--top", top),
        *("--set", "confirm.seeds=1"),
        *("--final-seeds", "", "--out", str(out), "--cpus-per-trial", "1"),
        *("--max-concurrent", "1"),
    ]


def spoil_what_judges(root: Path) -> list[Path]:
    """Make every test image and every image of a new class a broken file. Returns the whole ones."""
    dataset = open_dataset("dtd", str(root))
    images = root / "dtd" / "images"
    new = {item.classname for item in dataset.train if item.label >= 4}
    forbidden = {item.path for item in dataset.test}
    forbidden |= {i.path for i in (*dataset.train, *dataset.val) if i.classname in new}
    assert len(new) == 4
    for path in forbidden:
        (images / path).write_text("no image: who opens this fails")
    return sorted(path for path in images.rglob("*.jpg") if path.read_bytes()[:2] == b"\xff\xd8")


@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("objective", SEARCH_OBJECTIVES)
def test_what_a_search_opens(tmp_path: Path, objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    root = write_dtd(tmp_path / "data", per_class=4, classes=CLASSES)
    left = spoil_what_judges(root)
    assert len(left) == 4 * 6, "training and validation images of base classes"
    status = main(arguments(root, tmp_path / "out", objective))
    said = capsys.readouterr()
    found = records(tmp_path / "out" / "dtd")
    if objective == "oracle_test":
        assert status == 1, "it cannot do without the test images"
        assert all(r["state"] == "FAIL" and ".jpg" in r["reason"] for r in found)
        assert "oracle_test reads the test images: the search leaks" in said.out
        return
    assert status == 0, said.err
    assert [r["state"] for r in found] == ["COMPLETE"] * 2
    if objective == SEARCH_OBJECTIVES[0]:
        confirmation = read_record(tmp_path / "out/dtd/confirmation.json", Confirmation)
        assert confirmation is not None
        assert len(confirmation.candidates) == 2
        assert all(candidate.mean is not None for candidate in confirmation.candidates)
