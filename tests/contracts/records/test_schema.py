"""Files of a study: read as they were written, and one line for each that is corrupt."""

import io
import json
import math
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from prometar.errors import PrometarError, UserError
from prometar.io.yamltext import read_yaml
from tests.support import study_records
from tests.support.texts import ANY
from tune.records.folder import read_records
from tune.records.schema import (
    VERSION,
    Confirmation,
    FinalTest,
    StudyRecord,
    TrialRecord,
    read_record,
    write_record,
)
from tune.report import page
from tune.report.terminal import print_summary

FILES: dict[str, Any] = {
    "study.yaml": StudyRecord,
    "trials/0001/record.json": TrialRecord,
    "confirmation.json": Confirmation,
    "finals.json": FinalTest,
}
SHOWN = 6  # files with a harmless damage, of each kind, that are reported
DEEP: Any = json.loads("[" * 300 + "]" * 300)
DAMAGES: dict[str, Any] = {
    "null": None,
    "text": "text",
    "negative": -1,
    "zero": 0,
    "half": 0.5,
    "huge": 1e300,
    "nan": math.nan,
    "true": True,
    "list": [],
    "list of null": [None],
    "mapping": {},
    "nested": {"a": [1]},
    "deep": DEEP,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with every file."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    records = study_records.small(folder)
    assert records.final_test is not None
    test = records.final_test.datasets["dtd"]
    # Only one run has metrics, because every place of the file is damaged.
    without = {
        name: tuple(replace(run, metrics={}, joint_accuracies={}) for run in getattr(test, name))
        for name in ("selected", "baseline")
    }
    test = replace(test, baseline=without["baseline"], selected=(test.selected[0], *without["selected"][1:]))
    final_test = replace(records.final_test, datasets={"dtd": test})
    return study_records.write(folder, replace(records, final_test=final_test))


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "study"))


def content(path: Path) -> Any:
    return read_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text())


def places(tree: Any, *before: str | int) -> Iterator[tuple[str | int, ...]]:
    """Places that can be damaged."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield (*before, key)
        yield from places(value, *before, key)


def put(path: Path, tree: Any, place: tuple[str | int, ...], *value: Any) -> None:
    """Replace or remove a value, and write the file."""
    tree = json.loads(json.dumps(tree))
    *way, last = place
    node = tree
    for key in way:
        node = node[key]
    if value:
        node[last] = value[0]
    else:
        del node[last]
    path.write_text(yaml.dump(tree, Dumper=yaml.CSafeDumper) if path.suffix == ".yaml" else json.dumps(tree))


@pytest.mark.parametrize("name", FILES)
def test_every_place_of_every_file(
    name: str, whole: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damage is one line that names the file, or everything can be reported."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    tree = content(whole / name)
    file = tmp_path / f"copy{Path(name).suffix}"
    lines: list[str] = []
    accepted: list[tuple[Any, ...]] = []
    for place in places(tree):
        if place[0] == "config" and len(place) > 2:
            continue  # plain data
        if {"bins", "confusion"} & set(place) and place[7:] and place[7] != 0:
            continue  # as in the first entry
        for damage in ((), *((value,) for value in DAMAGES.values())):
            put(file, tree, place, *damage)
            try:
                read_record(file, FILES[name])
                accepted.append((place, *damage))
            except PrometarError as error:
                lines.append(str(error))
    assert len(lines) > 50
    assert not [line for line in lines if "\n" in line or file.name not in line]
    for each in random.Random(0).sample(accepted, SHOWN):
        put(copy / name, tree, *each)
        with suppress(PrometarError):  # of a configuration, which is validated as a whole
            records = read_records(copy)
            page.render(records)
            print_summary(Console(file=io.StringIO()), records)


def test_a_record_is_read_as_it_was_written(whole: Path, tmp_path: Path) -> None:
    before = read_records(whole)
    study_records.write(tmp_path, before)
    assert replace(read_records(tmp_path), folder=before.folder) == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    values=st.dictionaries(
        st.text(ANY, max_size=5),
        st.booleans()
        | st.integers()
        | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(ANY, max_size=5),
        max_size=5,
    )
)
def test_settings_keep_their_values_and_types(values: dict[str, Any], tmp_path: Path) -> None:
    write_record(tmp_path / "record.json", study_records.trial(1, settings=study_records.DEFAULT))
    write_record(tmp_path / "record.json", replace(study_records.trial(1), settings=values))
    found = read_record(tmp_path / "record.json", TrialRecord)
    assert found
    assert {key: (type(x), x) for key, x in found.settings.items()} == {
        key: (type(x), x) for key, x in values.items()
    }


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("version", [None, 1, 2, VERSION + 1])
def test_another_version_is_refused_in_one_line(name: str, version: int | None, copy: Path) -> None:
    put(copy / name, content(copy / name), ("version",), version)
    line = f"{name} has file format {version}, but this release reads format {VERSION}"
    with pytest.raises(UserError, match=line) as caught:
        read_records(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "text", ["", "[]", "x", "\x00", "[" * 100_000, f'{{"version": {VERSION}, "a": ' * 5000, "&a [*a]"]
)
def test_a_file_that_is_not_a_record_is_one_line(name: str, text: str, copy: Path) -> None:
    (copy / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        read_records(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place", "value", "says"),
    [
        ("finals.json", ("datasets", "dtd", "selected", 1, "seed"), "x", r"datasets\.dtd\.selected\.1\.seed"),
        ("finals.json", ("datasets", "dtd", "difference", "low"), math.nan, r"datasets\.dtd\.difference"),
        ("study.yaml", ("config", "search", "trials"), "many", r"config\.search\.trials"),
        ("study.yaml", ("config", "run", "method"), None, r"config\.run\.method"),
    ],
)
def test_the_field_is_named(name: str, place: tuple[Any, ...], value: Any, says: str, copy: Path) -> None:
    put(copy / name, content(copy / name), place, value)
    with pytest.raises(UserError, match=rf"{name} is corrupt \({says}"):
        read_records(copy)
