"""The files of a study's folder: read as they were written, and one line for each that is damaged."""

import io
import json
import math
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from prometar.errors import UserError
from prometar.io.yamltext import read_yaml
from tests.support.report_study import (
    compared,
    description,
    final_runs,
    finals,
    last_round,
    learned,
    trial,
    write,
)
from tests.support.texts import ANY
from tune.reporting.html import render
from tune.reporting.plots import style
from tune.reporting.statements import caveats
from tune.reporting.terminal import print_summary
from tune.results.reader import read_records
from tune.results.schema import FINAL_TEST, LEARNED, REEVALUATION, STUDY, TRIAL, VERSION, File, Run

FILES: dict[str, File] = {
    "study.yaml": STUDY, "trials/0001/record.json": TRIAL, "lastround.json": REEVALUATION,
    "finals.json": FINAL_TEST, "learned.json": LEARNED,
}  # fmt: skip
SHOWN = 6  # files with a harmless damage, of each kind, of which everything is made
DEEP: Any = json.loads("[" * 300 + "]" * 300)
DAMAGES: dict[str, Any] = {
    "null": None, "text": "text", "negative": -1, "zero": 0, "half": 0.5, "huge": 1e300, "nan": math.nan,
    "true": True, "list": [], "list of null": [None], "mapping": {}, "nested": {"a": [1]}, "deep": DEEP,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with every file, as a driver writes them."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    trials = [trial(0), trial(1), trial(2, "PRUNED"), trial(3, "FAIL", reason="the loss is nan")]
    ours, released = (final_runs(t["settings"], [1, 2, 3]) for t in (trials[1], trials[0]))
    tested = finals(trials[1], {"dtd": compared(ours, released, 70.4)})
    write(folder, description(), trials, lastround=last_round(trials), finals=tested, learned=learned())
    for name, file in FILES.items():
        file.write(folder / name, file.read(folder / name))
    return folder


def content(path: Path) -> Any:
    return read_yaml(path) if path.suffix == ".yaml" else json.loads(path.read_text())


def places(tree: Any, *before: str | int) -> Iterator[tuple[str | int, ...]]:
    """Where something can be damaged."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*before, key)
        yield from places(value, *before, key)


def put(path: Path, tree: Any, place: tuple[str | int, ...], *value: Any) -> None:
    """Replace what is at a place, or remove it, and write the file."""
    tree = json.loads(json.dumps(tree))
    *way, last = place
    node = tree
    for key in way:
        node = node[key]
    if value:
        node[last] = value[0]
    else:
        del node[last]
    path.unlink(missing_ok=True)  # what is written over a file is brought to the disk: three milliseconds
    path.write_text(yaml.safe_dump(tree) if path.suffix == ".yaml" else json.dumps(tree))


def show(folder: Path) -> None:
    """All that is made from records."""
    records, console = read_records(folder), Console(file=io.StringIO())
    render(records)
    print_summary(console, records, folder, folder / "report.html")


@pytest.mark.parametrize("name", FILES)
def test_every_place_of_every_file(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damage is told in a line that names the file, or it is none: then everything can be shown."""
    monkeypatch.setattr(style, "library", lambda: "")
    monkeypatch.setattr(go.Figure, "to_html", lambda *_, **__: "")
    tree, copy = content(whole / name), tmp_path / f"{Path(name).stem}.json"
    told: list[str] = []
    taken: list[tuple[Any, ...]] = []
    for place in places(tree):
        for damage in ((), *((value,) for value in DAMAGES.values())):
            put(copy, tree, place, *damage)
            try:
                FILES[name].read(copy)
                taken.append((place, *damage))
            except UserError as error:
                told.append(str(error))
    assert len(told) > 100
    assert not [line for line in told if "\n" in line or copy.name not in line]
    shutil.copytree(whole, tmp_path / "study")
    for each in random.Random(0).sample(taken, SHOWN):
        put(tmp_path / "study" / name, tree, *each)
        with suppress(UserError):  # a text for a number, which only the space tells
            show(tmp_path / "study")


def test_a_record_is_read_as_it_was_written(whole: Path, tmp_path: Path) -> None:
    before = read_records(whole)
    STUDY.write(tmp_path / "study.yaml", before.study)
    for one in before.trials:
        TRIAL.write(tmp_path / f"trials/{one.number:04d}/record.json", one)
    assert before.lastround is not None
    assert before.finals is not None
    REEVALUATION.write(tmp_path / "lastround.json", before.lastround)
    FINAL_TEST.write(tmp_path / "finals.json", before.finals)
    after = read_records(tmp_path)
    assert (after.study, after.trials, after.lastround, after.finals) == (
        before.study, before.trials, before.lastround, before.finals
    )  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(
    values=st.dictionaries(
        st.text(ANY, max_size=5),
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
        | st.text(ANY, max_size=5),
        max_size=5,
    )
)  # fmt: skip
def test_settings_keep_their_values_and_types(values: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    one = replace(read_records(whole).trials[0], settings=values)
    TRIAL.write(tmp_path / "record.json", one)
    found = TRIAL.read(tmp_path / "record.json").settings
    assert {key: (type(value), value) for key, value in found.items()} == {
        key: (type(value), value) for key, value in values.items()
    }


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    ("version", "says"),
    [
        (None, f"has no version, and this prometar reads version {VERSION}"),
        (VERSION + 1, f"is of version {VERSION + 1}"),
    ],
)
def test_another_version_is_one_clear_line(
    name: str, version: int | None, says: str, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "study")
    path = tmp_path / "study" / name
    put(path, content(path), ("version",), *(() if version is None else (version,)))
    with pytest.raises(UserError, match=f"{name} {says}"):
        read_records(tmp_path / "study")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "text", ["", "[]", "x", "\x00", "[" * 100_000, f'{{"version": {VERSION}, "a": ' * 5000, "&a [*a]"]
)
def test_what_is_no_record_is_one_line(name: str, text: str, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "study")
    (tmp_path / "study" / name).write_text(text)
    with pytest.raises(UserError, match=name) as caught:
        read_records(tmp_path / "study")
    assert "\n" not in str(caught.value)


def test_a_small_yaml_that_stands_for_a_large_tree_is_refused(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "study")
    path = tmp_path / "study" / "study.yaml"
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
    )
    path.write_text(path.read_text() + bomb)
    with pytest.raises(UserError, match=r"study\.yaml"):
        read_records(tmp_path / "study")


def test_every_caveat_is_on_the_page_and_in_the_terminal(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(style, "library", lambda: "")
    shutil.copytree(whole, tmp_path / "study")
    path = tmp_path / "study" / "finals.json"
    put(path, content(path), ("tested",), [0, 1, 3])
    path = tmp_path / "study" / "lastround.json"
    put(path, content(path), ("keep_unless",), 0.8)
    records, said = read_records(tmp_path / "study"), io.StringIO()
    lines = caveats(records)
    assert (
        "Settings of trials 1 and 3 have been tested: later choices may have been made knowing that." in lines
    )
    page = unescape(render(records))
    print_summary(Console(file=said, width=500), records, tmp_path, tmp_path)
    assert "here they are rough" in " ".join(lines)
    assert "<dt>learned from</dt><dd>8 trials on caltech101, eurosat</dd>" in page
    for line in lines:
        assert f"<li>{line}</li>" in page
        assert f"- {line}" in said.getvalue()


@pytest.mark.parametrize(("tested", "told"), [((0,), False), ((0, 2), True)])
def test_released_settings_that_are_kept_after_a_test_of_others_are_told_so(
    tested: tuple[int, ...], told: bool, whole: Path
) -> None:
    records = read_records(whole)
    assert records.finals
    kept = replace(records.finals, best=replace(records.finals.best, number=0), same=True, tested=tested)
    line = "Settings of trial 2 have been tested: later choices may have been made knowing that."
    assert (line in caveats(replace(records, finals=kept))) == told
    chosen = replace(records.finals, best=replace(records.finals.best, number=2), tested=(0, 2))
    assert line not in caveats(replace(records, finals=chosen))


@pytest.mark.parametrize(
    ("changes", "rough"),
    [({}, False), ({"method": "coop"}, True), ({"backbone": "ViT-B-16-quickgelu"}, True),
     ({"pretrained": "own.pt"}, True), ({"val_per_class": 2}, True), ({"datasets": ("dtd",)}, True)],
)  # fmt: skip
def test_what_leads_are_worth_elsewhere_is_called_rough(
    changes: dict[str, Any], rough: bool, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole, tmp_path / "study")
    path = tmp_path / "study" / "lastround.json"
    put(path, content(path), ("keep_unless",), 0.8)
    records = read_records(tmp_path / "study")
    alike = {"backbone": "mini", "pretrained": None, "datasets": ("cells",)}
    asked = replace(records.asked, **(alike | changes))
    records = replace(records, study=replace(records.study, asked=asked))
    assert any("here they are rough" in line for line in caveats(records)) == rough


def test_the_field_is_named(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "study")
    path = tmp_path / "study" / "finals.json"
    put(path, content(path), ("datasets", "dtd", "best", 1, "seed"), "one")
    with pytest.raises(
        UserError, match=r"finals\.json is damaged, datasets\.dtd\.best\.1\.seed: Input should"
    ):
        read_records(tmp_path / "study")


def test_numbers_are_wanted_where_the_space_has_them(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "study")
    path = tmp_path / "study" / "trials/0001/record.json"
    put(path, content(path), ("settings", "optim.lr"), "fast")
    with pytest.raises(UserError, match=r"trial 1 .*settings\.optim\.lr: 'fast' is no number"):
        read_records(tmp_path / "study")


def test_a_run_without_figures_is_not_done() -> None:
    assert not Run("dtd", 1, failed="killed").done
    assert Run("dtd", 1, objective=0.0).done


def test_a_study_is_read_and_reported_without_the_machinery_that_made_it(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "study")
    code = (
        "import sys; from prometar.cli.app import main; status = main(['report', sys.argv[1]]);"
        "heavy = {'ray', 'optuna', 'sqlalchemy', 'pandas', 'torch'};"
        "print(status, sorted(heavy & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "study")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
