"""What a study runs on does not change while it goes on; and what may change is told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tune.reporting.html import build_report
from tune.results import writer as folder
from tune.results.reader import read_records
from tune.stages.validation import check

from prometar.bundled.weights import load_mini
from prometar.config.settings import Config
from prometar.errors import UserError
from tests.conftest import DTD_SPLIT
from tests.support.driver import NAME, run_fake, small_spec


def test_digests_are_of_contents(own_dtd: Path, tmp_path: Path) -> None:
    _, state = load_mini()
    state = {name: value.contiguous() for name, value in state.items()}
    other = state | {"logit_scale": state["logit_scale"] + 0.01}

    def weights(name: str, tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, tmp_path / name)
        changes = {"backbone.pretrained": str(tmp_path / name), "data.name": "dtd", "data.root": str(own_dtd)}
        return str(
            check(small_spec(objective="base_val", config=Config().override(changes))).identity["weights"]
        )

    found = [
        weights("a.safetensors", state),
        weights("b.safetensors", state),
        weights("c.safetensors", other),
    ]
    assert found[0] == found[1] != found[2]


@pytest.mark.usefixtures("ray_local")
def test_a_study_is_of_one_split(own_dtd: Path, tmp_path: Path) -> None:
    config = Config().override({"train.epochs": 3, "data.name": "dtd", "data.root": str(own_dtd)})
    given: dict[str, Any] = {"config": config, "objective": "base_val"}
    run_fake(tmp_path, small_spec(trials=1, **given))
    path = own_dtd / "dtd" / DTD_SPLIT
    text = path.read_text()
    split = json.loads(text)
    split["train"][0], split["val"][0] = split["val"][0], split["train"][0]
    path.write_text(json.dumps(split))
    with pytest.raises(UserError, match=r"settings \(split of dtd: [0-9a-f]{12} then, [0-9a-f]{12} now\)"):
        run_fake(tmp_path, small_spec(trials=2, **given))
    path.write_text(text)
    _, said = run_fake(tmp_path, small_spec(trials=2, **given))
    assert "going on: 1 trials are done" in said


@pytest.mark.usefixtures("ray_local")
def test_a_report_names_all_versions_that_a_study_was_made_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("2.9.0", "2.9.0", "2.10.0", "2.9.0", "2.11.0"):
        monkeypatch.setattr(folder, "environment", lambda version=version: {"torch": version})
        run_fake(tmp_path, small_spec(trials=1))
    study = read_records(tmp_path / NAME).study
    assert study.environment["torch"] == "2.11.0"
    assert [each["torch"] for each in study.earlier_environments] == ["2.10.0", "2.9.0"]
    report = build_report(tmp_path / NAME).read_text()
    assert "2.11.0 (earlier 2.10.0, 2.9.0)" in report
