"""examples/study.ipynb in a Jupyter kernel, which starts its own Ray."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tune import Study

ROOT = Path(__file__).resolve().parents[2]


def shown(cell: nbformat.NotebookNode, kind: str) -> str:
    """Return what a cell printed ("text"), or displayed as a MIME type."""
    if kind == "text":
        return "".join(each.text for each in cell.outputs if each.output_type == "stream")
    return "".join(each.data.get(kind, "") for each in cell.outputs if "data" in each)


def test_the_notebook_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(ROOT / "examples" / "study.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "it is kept without outputs"
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    cells = {cell.id: cell for cell in notebook.cells}
    assert "Search: 2 runs, 2 epochs, " in shown(cells["budget"], "text")
    said = shown(cells["search"], "text") + shown(cells["search"], "text/plain")
    assert "\x1b[" not in said, "plain lines, since no terminal could move a cursor"
    assert "2 trials of up to 1 epoch, prometar on cells with mini" in said
    records = Study(tmp_path / "out" / "notebook").records
    assert [trial.state for trial in records.trials] == ["COMPLETE"] * 2
    assert shown(cells["trials"], "text/plain").count("COMPLETE") == 2
    assert records.selected is not None
    assert str(records.selected.settings["regularizer.kind"]) in shown(cells["best"], "text/plain")
    page = shown(cells["shown"], "text/html")
    assert "<html" not in page, "a part of a page, not a whole one"
    assert str(records.folder / "report.html") in page + shown(cells["shown"], "text")
