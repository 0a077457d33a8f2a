"""`prometar doctor`: a line for each thing, and status 1 where a study would be refused."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prometar import doctor
from prometar.cli.app import main
from prometar.doctor import Status, gpus, ray, weights
from prometar.errors import UserError

GIB = 2**30


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [{"CPU": 2.0, "object_store_memory": 1.0}]
    monkeypatch.setattr(doctor, "start_ray", lambda address: nodes)


def test_the_embedded_study_can_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", "--out", str(tmp_path / "not" / "yet")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("refused")]
    for what in ("versions: Python", "disk: ", "weights of mini: ", "data set textures: ", "Ray: "):
        assert [line for line in lines if what in line], what
    assert not list(tmp_path.iterdir())


def test_all_of_the_embedded_suite_has_the_embedded_backbone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["doctor", "--dataset", "flags", "cells", "--out", str(tmp_path)]) == 0
    assert "weights of mini: " in capsys.readouterr().out


def test_everything_that_refuses_a_study_is_told_at_once(
    capsys: pytest.CaptureFixture[str], small_dtd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "start_ray", lambda address: [{"CPU": 0.5}])
    given = ["--dataset", "dtd", "eurosat", "--data-root", str(small_dtd), "--pretrained", "missing.pt"]
    assert main(["doctor", *given]) == 1
    told = capsys.readouterr()
    refused = [line for line in told.out.splitlines() if line.startswith("refused")]
    assert [line.split(":")[0].split(maxsplit=1)[1] for line in refused] == [
        "weights of ViT-B-16-quickgelu", "data set eurosat", "Ray"
    ]  # fmt: skip
    assert told.err.strip().endswith("a study would be refused here for 3 of these")


def test_a_data_set_named_twice_is_refused_as_by_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--dataset", "textures", "textures"]) == 2
    assert capsys.readouterr().err == "error: --dataset names one twice: textures textures\n"


def test_a_data_set_that_cannot_be_tested_on_is_refused(
    capsys: pytest.CaptureFixture[str], small_dtd: Path, tmp_path: Path
) -> None:
    (split,) = small_dtd.glob("dtd/split_zhou_*.json")
    tree = json.loads(split.read_text())
    last = max(label for _, label, _ in tree["test"])
    tree["test"] = [row for row in tree["test"] if row[1] != last]
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd" / split.name).write_text(json.dumps(tree))
    (tmp_path / "dtd" / "images").symlink_to(small_dtd / "dtd" / "images")
    assert main(["doctor", "--dataset", "dtd", "--data-root", str(tmp_path), "--backbone", "mini"]) == 1
    assert re.search(
        r"refused +data set dtd: dtd has no test images of 'woven': every class needs some",
        capsys.readouterr().out,
    )


def test_a_file_where_the_studies_are_to_be_refuses_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--out", str(tmp_path / "file")]) == 1
    assert f"nothing can be written into {tmp_path}/file: choose another --out" in capsys.readouterr().out


def two_gpus(monkeypatch: pytest.MonkeyPatch, compute: Callable[[int], None]) -> list[doctor.Finding]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "A Card")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: ((70, 10)[number] * GIB, 80 * GIB))
    monkeypatch.setattr(doctor, "compute_on", lambda device: compute(device.index))
    return gpus()


def test_gpus_and_their_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    free, full = two_gpus(monkeypatch, lambda number: None)
    assert (free.status, full.status) == (Status.OK, Status.NOTE)
    assert "A Card, 10.0 of 80.0 GiB free" in full.says


@pytest.mark.parametrize("call", ["mem_get_info", "compute_on"])
def test_a_gpu_on_which_nothing_can_be_computed_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is in another's exclusive use, say, or torch has no kernels for it."""

    def refuse(number: int) -> tuple[int, int]:
        if number == 1:
            raise torch.AcceleratorError("CUDA error: no kernel image is available\nSearch for `cudaError'")
        return 80 * GIB, 80 * GIB

    if call == "compute_on":
        good, bad = two_gpus(monkeypatch, refuse)  # type: ignore[arg-type]
    else:
        two_gpus(monkeypatch, lambda number: None)
        monkeypatch.setattr(torch.cuda, call, refuse)
        good, bad = gpus()
    assert (good.status, bad.status) == (Status.OK, Status.REFUSED)
    assert bad.says == "trials on it would fail: CUDA error: no kernel image is available"


def test_why_torch_can_use_no_gpu_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old() -> bool:
        warnings.warn("CUDA initialization: The NVIDIA driver is too old.\nUpdate it.", stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", too_old)
    (found,) = gpus()
    assert found.status is Status.NOTE
    assert found.says.endswith(
        "trials run on the CPU; CUDA initialization: The NVIDIA driver is too old. Update it."
    )


def test_weights_of_a_tag_are_looked_for_and_not_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    for cached, status in ((True, Status.OK), (False, Status.NOTE)):
        monkeypatch.setattr(doctor, "has_cached", lambda name, tag, cached=cached: cached)
        assert weights("ViT-B-16-quickgelu", "openai").status is status
    assert weights("ViT-B-17", "openai").status is Status.REFUSED


def test_a_cluster_without_room_is_refused() -> None:
    with pytest.raises(UserError, match=r"Ray has 0\.5"):
        ray([{"CPU": 0.5}])
