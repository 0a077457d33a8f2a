"""A trial's share of a GPU: measured once a study, on GPUs that only Ray believes in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support.driver import NAME, ROOT, misbehave, records
from tune.stages.gpu_share import LEAST, MARGIN, share_of_gpu

RUN = """
import sys
from pathlib import Path
import ray
from prometar.distributed.local_ray import configure_ray
configure_ray()
kinds = {f"accelerator_type:{kind}": 1 for kind in sys.argv[2:]}
ray.init(num_cpus=2, num_gpus=1, resources=kinds, include_dashboard=False, log_to_driver=False)
from tests.support.driver import run_fake, small_spec
print(run_fake(Path(sys.argv[1]), small_spec(trials=2), cpus_per_trial=0.5)[1])
"""


@given(used=st.integers(1, 200), total=st.integers(1, 200))
def test_as_many_as_fit_and_never_none(used: int, total: int) -> None:
    share = share_of_gpu(used, total)
    count = round(1 / share)
    assert 0 < share <= 1
    assert count == 1 or count * used <= MARGIN * total
    assert count * share <= 1
    assert share == LEAST or (count + 1) * used > MARGIN * total * 0.999


def study(folder: Path, *kinds: str) -> str:
    """What a study says on a machine with a GPU of these kinds."""
    command = [sys.executable, "-c", RUN, str(folder), *kinds]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_study_measures_once_for_each_kind_of_gpu(tmp_path: Path) -> None:
    misbehave(tmp_path, {"0": "memory"})
    first = study(tmp_path, "L4")
    assert "a trial uses 5.0 of 24.0 GiB of its GPU: 0.25 of one each" in first
    assert "and 0.25 GPU" in first
    assert [r["gpus"] for r in records(tmp_path)] == [0.25, 0.25]
    assert json.loads((tmp_path / NAME / "probe.json").read_text())["share"] == 0.25
    again = study(tmp_path, "L4")
    assert "a trial uses" not in again
    assert "and 0.25 GPU" in again
    assert "a trial uses" in study(tmp_path, "A10G"), "another kind has another memory"
    mixed = study(tmp_path, "A10G", "L4")
    assert "GPUs of several kinds, A10G and L4: each trial gets a whole one" in mixed
    assert "and 1 GPU" in mixed


def test_what_cannot_be_measured_gets_a_whole_gpu(tmp_path: Path) -> None:
    misbehave(tmp_path, {})
    said = study(tmp_path)
    assert "the memory of a trial could not be measured: each gets a whole GPU" in said
    assert [r["gpus"] for r in records(tmp_path)] == [1, 1]
