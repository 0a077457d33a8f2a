"""examples/study.ipynb, as Jupyter runs it: a kernel of its own, with its own Ray."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tune import Study

ROOT = Path(__file__).resolve().parents[2]


def shown(cell: nbformat.NotebookNode, kind: str) -> str:
    """What a cell has printed ("text"), or displayed as a MIME type."""
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
    assert "search: 2 runs, 2 epochs, " in shown(cells["budget"], "text")
    said = shown(cells["search"], "text") + shown(cells["search"], "text/plain")
    assert "\x1b[" not in said, "lines as they come: no terminal is there to move a cursor in"
    assert "2 trials of 1 epoch, prometar on cells with mini" in said
    assert "the whole study, its final runs too, takes at most" in said
    study = Study(tmp_path / "out" / "notebook")
    assert [trial.state for trial in study.trials] == ["COMPLETE"] * 2
    assert shown(cells["trials"], "text/html").count("COMPLETE") == 2
    assert study.best is not None
    assert str(study.best.settings["regularizer.kind"]) in shown(cells["best"], "text/plain")
    page = shown(cells["shown"], "text/html")
    assert "<strong>Study notebook</strong>" in page
    assert str(study.folder / "report.html") in page
    assert study.records.study.command.startswith("Study('out/notebook', dataset='cells'")
