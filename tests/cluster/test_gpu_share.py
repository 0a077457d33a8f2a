"""A trial's share of a GPU: measured once a study, on GPUs that only Ray believes in."""

import json
import subprocess
import sys
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tests.support.driver import NAME, misbehave, records
from tests.support.processes import ROOT
from tune.results.reader import read_records
from tune.stages.gpu_share import LEAST, MARGIN, share_of_gpu

RUN = """
import json
import sys
from pathlib import Path
import ray
from prometar.distributed.local_ray import configure_ray
from prometar.distributed.ray_private import without_helpers
configure_ray()
kinds = {"accelerator_type:L4": 1, "accelerator_type:A10G": 1}
with without_helpers():
    ray.init(
        address="local", num_cpus=2, num_gpus=1, resources=kinds, include_dashboard=False, log_to_driver=False
    )
from tests.support.driver import run_fake, small_spec
from tune import study
from tune.stages import gpu_share
start, look = study.start_ray, gpu_share.least_memory
for name, least, *shown in json.loads(sys.argv[2]):
    gpu_share.least_memory = (lambda: least * 2**30) if least else look
    def some(**given):
        hidden = kinds.keys() - {f"accelerator_type:{kind}" for kind in shown}
        return [{name: each for name, each in node.items() if name not in hidden} for node in start(**given)]
    study.start_ray = some
    _, text = run_fake(Path(sys.argv[1], name), small_spec(trials=2), cpus=0.5)
    print(json.dumps(text))
"""


@given(used=st.integers(1, 200), total=st.integers(1, 200))
def test_as_many_as_fit_and_never_none(used: int, total: int) -> None:
    share = share_of_gpu(used, total)
    count = round(1 / share)
    assert 0 < share <= 1
    assert count == 1 or count * used <= MARGIN * total
    assert count * share <= 1
    assert share == LEAST or (count + 1) * used > MARGIN * total * 0.999


def studies(folder: Path, *asked: tuple[str | int, ...]) -> list[str]:
    """What studies say, which share a Ray.

    asked: Each one's folder, the GiB of the smallest GPU (0: as it is), and the kinds of GPU that it sees.
    """
    command = [sys.executable, "-c", RUN, str(folder), json.dumps(asked)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_study_measures_once_for_each_kind_of_gpu_and_without_a_measure_takes_a_whole_one(
    tmp_path: Path,
) -> None:
    measured, not_measured = tmp_path / "measured", tmp_path / "not"
    misbehave(measured, {"0": "memory"})
    misbehave(not_measured, {})
    unknown, first, again, other, mixed = studies(
        tmp_path,
        ("not", 0),
        ("measured", 0, "L4"),
        ("measured", 0, "L4"),
        ("measured", 0, "A10G"),
        ("measured", 0, "A10G", "L4"),
    )
    assert "the memory of a trial could not be measured: each gets a whole GPU" in unknown
    assert [r["gpus"] for r in records(not_measured)] == [1, 1]
    assert "a trial uses 5.0 of 24.0 GiB of its GPU: 0.25 of one each" in first
    assert "and 0.25 GPU" in first
    assert [r["gpus"] for r in records(measured)] == [0.25, 0.25]
    assert json.loads((measured / NAME / "probe.json").read_text())["share"] == 0.25
    assert "a trial uses" not in again
    assert "and 0.25 GPU" in again
    assert "a trial uses" in other, "another kind has another memory"
    assert "GPUs of several kinds, A10G and L4: each trial gets a whole one" in mixed
    assert "and 1 GPU" in mixed
    study = read_records(measured / NAME).study
    assert study.environment["gpus"] == "A10G L4"
    assert [each["gpus"] for each in study.earlier_environments] == ["L4", "A10G"]
    assert "A10G L4 (earlier L4, A10G)" in (measured / NAME / "report.html").read_text()


def test_gpus_of_one_kind_may_have_less_memory_than_the_one_that_was_measured_on(tmp_path: Path) -> None:
    """Ray calls an A100 of 40 GB and one of 80 by one name."""
    misbehave(tmp_path / "measured", {"0": "memory"})
    alike, again, smaller, again_smaller = studies(
        tmp_path, *[("measured", least, "L4") for least in (24, 24, 11, 11)]
    )
    assert "a trial uses 5.0 of 24.0 GiB of its GPU: 0.25 of one each" in alike
    assert "a trial uses" not in again
    assert "a trial uses 5.0 of 24.0 GiB of its GPU, and the smallest has 11.0: 0.5 of one each" in smaller
    assert "a trial uses" not in again_smaller
    assert "and 0.5 GPU" in again_smaller
