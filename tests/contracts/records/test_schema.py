"""Files of a study are read as they were written, and a corrupt file is refused in one line."""

import io
import json
import math
import random
import shutil
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
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
    RunScore,
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
"""Class of the record in each file."""
NUM_REPORTED = 6
"""Number of harmless damages per file after which a report is written. A report takes long."""
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
"""Values that replace another value, by description."""
Place = tuple[str | int, ...]
"""Keys and list indices that lead to a value in a file."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that has all files."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    records = study_records.small(folder)
    assert records.final_test is not None
    test = records.final_test.datasets["dtd"]
    # Each place of the file is damaged, so only one run has metrics, which have many places.
    run_with_metrics, *other_selected = test.selected
    test = replace(
        test,
        baseline=without_metrics(test.baseline),
        selected=(run_with_metrics, *without_metrics(other_selected)),
    )
    final_test = replace(records.final_test, datasets={"dtd": test})
    return study_records.write(folder, replace(records, final_test=final_test))


def without_metrics(runs: Iterable[RunScore]) -> tuple[RunScore, ...]:
    """Return runs without metrics."""
    return tuple(replace(run, metrics={}, joint_accuracies={}) for run in runs)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A copy of the study that the test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "study"))


def content(path: Path) -> Any:
    """Return the content of a YAML or JSON file."""
    if path.suffix == ".yaml":
        return read_yaml(path)
    return json.loads(path.read_text())


def places(tree: Any, *before: str | int) -> Iterator[Place]:
    """Yield the places of all values in a file.

    Args:
        tree: A value of the file.
        before: Place of `tree`.
    """
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(tree, dict):
        items = tree.items()
    elif isinstance(tree, list):
        items = enumerate(tree)
    for key, value in items:
        yield (*before, key)
        yield from places(value, *before, key)


REMOVED = object()
"""In place of a value: the value is removed."""


@dataclass(frozen=True)
class Damage:
    """A value that replaces another one, or `REMOVED`."""

    place: Place
    value: Any


def write_damaged(path: Path, tree: Any, damage: Damage) -> None:
    """Write a YAML or JSON file with a damage.

    Args:
        path: Path of the file.
        tree: Content of the file without damage.
        damage: The damage.
    """
    tree = json.loads(json.dumps(tree))  # a copy
    *keys, last_key = damage.place
    node = tree
    for key in keys:
        node = node[key]
    if damage.value is REMOVED:
        del node[last_key]
    else:
        node[last_key] = damage.value
    if path.suffix == ".yaml":
        path.write_text(yaml.dump(tree, Dumper=yaml.CSafeDumper))
    else:
        path.write_text(json.dumps(tree))


def is_like_another_place(place: Place) -> bool:
    """Return whether a place need not be damaged, because another one is read by the same code."""
    if place[0] == "config" and len(place) > 2:
        return True  # the rest of the configuration is plain data
    # Bins and confusions of metrics are lists. Their index is at position 7 of a place.
    is_in_list_of_metrics = bool({"bins", "confusion"} & set(place)) and len(place) > 7
    return is_in_list_of_metrics and place[7] != 0


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_damaged_in_any_place_is_refused_in_one_line_or_can_be_reported(
    name: str, whole: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "")
    tree = content(whole / name)
    file = tmp_path / f"copy{Path(name).suffix}"
    messages: list[str] = []
    harmless: list[Damage] = []
    for place in places(tree):
        if is_like_another_place(place):
            continue
        for value in (REMOVED, *DAMAGES.values()):
            damage = Damage(place, value)
            write_damaged(file, tree, damage)
            try:
                read_record(file, FILES[name])
                harmless.append(damage)
            except PrometarError as error:
                messages.append(str(error))

    assert len(messages) > 50
    assert [message for message in messages if "\n" in message or file.name not in message] == []
    for damage in random.Random(0).sample(harmless, NUM_REPORTED):
        write_damaged(copy / name, tree, damage)
        with suppress(PrometarError):  # a configuration is validated as a whole, after it was read
            records = read_records(copy)
            page.render(records)
            print_summary(Console(file=io.StringIO()), records)


def test_a_record_is_read_as_it_was_written(whole: Path, tmp_path: Path) -> None:
    before = read_records(whole)
    study_records.write(tmp_path, before)
    assert replace(read_records(tmp_path), folder=before.folder) == before


NAMES = st.text(ANY, max_size=5)
FINITE_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
SETTINGS = st.dictionaries(NAMES, st.booleans() | st.integers() | FINITE_NUMBERS | NAMES, max_size=5)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(values=SETTINGS)
def test_settings_keep_their_values_and_types(values: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    write_record(file, study_records.trial(1, settings=study_records.DEFAULT))
    write_record(file, replace(study_records.trial(1), settings=values))  # replaces the first record

    found = read_record(file, TrialRecord)

    assert found is not None
    assert found.settings == values
    for key, value in values.items():
        assert type(found.settings[key]) is type(value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("version", [None, 1, 2, VERSION + 1])
def test_another_version_is_refused_in_one_line(name: str, version: int | None, copy: Path) -> None:
    write_damaged(copy / name, content(copy / name), Damage(("version",), version))
    line = f"{name} has file format {version}, but this release reads format {VERSION}"
    with pytest.raises(UserError, match=line) as caught:
        read_records(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "text",
    ["", "[]", "x", "\x00", "[" * 100_000, f'{{"version": {VERSION}, "a": ' * 5000, "&a [*a]"],
    ids=["empty", "list", "word", "zero-byte", "deep-list", "deep-mapping", "yaml-cycle"],
)
def test_a_file_that_is_not_a_record_is_refused_in_one_line(name: str, text: str, copy: Path) -> None:
    (copy / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        read_records(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place", "value", "field"),
    [
        ("finals.json", ("datasets", "dtd", "selected", 1, "seed"), "x", r"datasets\.dtd\.selected\.1\.seed"),
        ("finals.json", ("datasets", "dtd", "difference", "low"), math.nan, r"datasets\.dtd\.difference"),
        ("study.yaml", ("config", "search", "trials"), "many", r"config\.search\.trials"),
        ("study.yaml", ("config", "run", "method"), None, r"config\.run\.method"),
    ],
    ids=["seed", "interval", "trials", "method"],
)
def test_the_message_names_the_field_that_is_corrupt(
    name: str, place: Place, value: Any, field: str, copy: Path
) -> None:
    write_damaged(copy / name, content(copy / name), Damage(place, value))
    with pytest.raises(UserError, match=rf"{name} is corrupt \({field}"):
        read_records(copy)
