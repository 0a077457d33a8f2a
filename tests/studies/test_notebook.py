"""examples/study.ipynb in a Jupyter kernel, which starts its own Ray."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tune import Study
from tune.records.folder import Records

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "study.ipynb"


@dataclass(frozen=True)
class Executed:
    """Cells of the executed notebook by id, and the records of its study."""

    cells: Mapping[str, nbformat.NotebookNode]
    records: Records


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Executed:
    """Execute the notebook in an empty folder."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        client.execute()
    return Executed({cell.id: cell for cell in notebook.cells}, Study(folder / "out" / "notebook").records)


def printed(cell: nbformat.NotebookNode) -> str:
    """Return what a cell printed."""
    return "".join(each.text for each in cell.outputs if each.output_type == "stream")


def displayed(cell: nbformat.NotebookNode, mime: str) -> str:
    """Return what a cell displayed in the format of a MIME type, such as "text/html"."""
    return "".join(each.data.get(mime, "") for each in cell.outputs if "data" in each)


def test_the_notebook_is_stored_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)


def test_the_plan_of_the_notebook_is_printed(executed: Executed) -> None:
    assert "Search: 2 runs, 2 epochs, " in printed(executed.cells["budget"])


def test_progress_in_the_notebook_consists_of_plain_lines(executed: Executed) -> None:
    cell = executed.cells["search"]
    output = printed(cell) + displayed(cell, "text/plain")
    assert "2 trials of up to 1 epoch, prometar on cells with mini" in output
    assert "\x1b[" not in output  # escape sequences move the cursor of a terminal, which a notebook lacks


def test_the_notebook_shows_its_trials(executed: Executed) -> None:
    assert [trial.state for trial in executed.records.trials] == ["COMPLETE"] * 2
    assert displayed(executed.cells["trials"], "text/plain").count("COMPLETE") == 2


def test_the_notebook_shows_the_selected_settings(executed: Executed) -> None:
    selected = executed.records.selected
    assert selected is not None
    shown = displayed(executed.cells["best"], "text/plain")
    assert str(selected.settings["regularizer.kind"]) in shown


def test_the_notebook_shows_a_summary_with_the_path_of_the_report(executed: Executed) -> None:
    summary = displayed(executed.cells["shown"], "text/html")
    assert "<html" not in summary  # a part of a page, not a whole one
    assert str(executed.records.folder / "report.html") in summary
