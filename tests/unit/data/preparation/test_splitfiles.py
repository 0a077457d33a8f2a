"""Split files: fetched, held to what was published, kept; from mirrors; or made of the official lists."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from prometar.cli.app import main
from prometar.data.datasets.benchmarks import BENCHMARKS, OFFICIAL_SPLIT
from prometar.data.datasets.catalog import open_dataset
from prometar.data.datasets.layouts import SplitFile
from prometar.data.preparation import download as download_module
from tests.support.copies import with_split, write_copy
from tests.support.fileserver import Served, serve

FILE = "split_zhou_DescribableTextures.json"


@dataclass
class Place:
    """A data root with the images of a small DTD, and a server of its split file."""

    served: Served
    root: Path
    origin: bytes

    @property
    def folder(self) -> Path:
        return self.root / "dtd"

    def download(self, *options: str) -> int:
        return main(["data", "download", "dtd", "--to", str(self.root), *options])

    def check(self) -> int:
        return main(["data", "check", "dtd", "--data-root", str(self.root)])

    def forget_digest(self) -> None:
        BENCHMARKS["dtd"] = replace(BENCHMARKS["dtd"], split_sha256=None)

    def serve_other(self, change: object) -> None:
        self.served.files[f"/splits/{FILE}"] = json.dumps(change).encode()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve({}) as served:
        folder = write_copy("dtd", tmp_path)
        monkeypatch.setattr(download_module, "PUBLIC_SPLITS", f"{served.url}/splits")
        monkeypatch.setitem(BENCHMARKS, "dtd", with_split(served, BENCHMARKS["dtd"], folder))
        origin = (folder / FILE).read_bytes()
        (folder / FILE).unlink()
        yield Place(served, tmp_path, origin)


def test_a_split_is_fetched(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert place.download() == place.check() == 0
    out = capsys.readouterr().out
    assert f"there already: {place.folder}/images\n" in out
    assert f"placed: {place.folder / FILE}\n" in out
    assert "not CoOp's" not in out
    assert (place.folder / FILE).read_bytes() == place.origin
    assert sorted(os.listdir(place.folder)) == sorted(["images", FILE])


def test_a_file_of_ones_own_in_published_sizes_is_told(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    (place.folder / FILE).write_bytes(place.origin + b" ")
    assert place.download() == place.check() == 0
    assert f"{FILE} is not CoOp's, byte for byte" in capsys.readouterr().out


WRONG = {
    "fewer images": ("is not the published split: it has train 19 of 20", lambda tree: tree["train"].pop()),
    "one class less": (
        "it has classes 4 of 5",
        lambda tree: [row.__setitem__(1, min(row[1], 3)) for part in tree.values() for row in part],
    ),
    "a path outside": ("leaves the image folder", lambda tree: tree["val"][0].__setitem__(0, "../../x.jpg")),
    "no split file": ("must hold the lists", lambda tree: tree.clear()),
}


@pytest.mark.parametrize("case", WRONG)
def test_another_split_is_refused_and_not_kept(
    place: Place, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    message, change = WRONG[case]
    tree = json.loads(place.origin)
    change(tree)
    place.serve_other(tree)
    assert place.download() == 1
    assert "has the sha256" in capsys.readouterr().err
    place.forget_digest()
    assert place.download() == 1
    error = capsys.readouterr().err
    assert message in error
    assert "--mirror names another source" in error
    assert error.count("\n") == 1
    assert os.listdir(place.folder) == ["images"]
    assert os.listdir(place.root) == ["dtd"]


@pytest.mark.parametrize("name", ["caltech101", "stanford_cars", "ucf101"])
def test_a_split_comes_before_images_that_are_got_by_hand(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = write_copy(name, place.root / "origin")
    monkeypatch.setitem(BENCHMARKS, name, row := with_split(place.served, BENCHMARKS[name], folder))
    assert main(["data", "download", name, "--to", str(place.root / "new")]) == 0
    out = capsys.readouterr().out
    assert f"placed: {place.root}/new/{row.folder}/split_zhou_" in out
    assert f"still to get by hand: {place.root}/new/{row.folder}" in out
    assert row.by_hand in out
    assert main(["data", "download", name, "--to", str(place.root / "origin")]) == 0
    assert "complete; look at every image" in capsys.readouterr().out


def test_a_mirror_of_ones_own(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    place.served.files[f"/mine/{FILE}"] = place.served.files.pop(f"/splits/{FILE}")
    assert place.download() == 1
    assert (
        "404: Not Found. Rerun this command to try again.; --mirror names another source of the split file"
        in capsys.readouterr().err
    )
    assert place.download("--mirror", "ftp://x") == 1
    assert place.download("--mirror", f"{place.served.url}/mine/") == 0
    assert (place.folder / FILE).read_bytes() == place.origin
    assert sorted(os.listdir(place.root)) == ["dtd"]


def _write_lists(place: Place) -> None:
    (place.folder / "labels").mkdir()
    (place.folder / "images").rename(place.folder / "before")
    images = sorted((place.folder / "before").rglob("*.jpg"))
    for k, split in enumerate(("train1", "val1", "test1")):
        lines = []
        for j, image in enumerate(images[k::3]):
            path = place.folder / "images" / f"{'woven' if j % 2 else 'banded'}/{split}_{j}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.rename(path)
            lines.append(f"{path.parent.name}/{path.name}\n")
        (place.folder / f"labels/{split}.txt").write_text("".join(lines))


def test_the_official_split_is_chosen_by_name_and_says_what_it_is(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    assert place.download("--split", "official") == 2
    assert "cannot read" in capsys.readouterr().err
    _write_lists(place)
    assert place.download("--split", "official") == place.check() == 0
    assert capsys.readouterr().out.count("the official split, not CoOp's") == 2
    dataset = open_dataset("dtd", place.root)
    assert {split: len(items) for split, items in dataset.splits.items()} == dict.fromkeys(dataset.splits, 15)
    assert dataset.classnames == ("banded", "woven")
    assert [item.path for item in dataset.val][:2] == ["banded/val1_0.jpg", "woven/val1_1.jpg"]
    assert place.download("--split", "official") == 0
    assert place.download() == 2
    assert f"{place.folder / OFFICIAL_SPLIT} exists, and a folder holds one split" in capsys.readouterr().err
    (place.folder / FILE).write_bytes(place.origin)
    assert place.check() == 2
    assert f"holds two splits, {FILE} and {OFFICIAL_SPLIT}: remove one" in capsys.readouterr().err


def test_every_split_file_has_a_digest_but_two() -> None:
    rows = [row for row in BENCHMARKS.values() if isinstance(row.layout, SplitFile)]
    assert len(rows) == 9
    assert [row.name for row in rows if row.split_sha256 is None] == ["food101", "sun397"]
