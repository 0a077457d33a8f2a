"""`benchmarks/trial_start.py` puts its clocks where a worker calls what they time."""

import importlib
import time
from pathlib import Path

import pytest

from prometar.config.settings import configure
from tune.execution.resources import ResourcePlan

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.usefixtures("ray_local")
def test_a_trial_s_start_is_the_sum_of_its_parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    script = importlib.import_module("trial_start")
    monkeypatch.setattr(script, "configure", lambda name, values: configure(name, values | {"data.shots": 1}))
    (task,) = script.tasks(str(tmp_path), ResourcePlan(1, 1.0, 0.0), 1)
    spent = script.TimedWorker().run(task, time.time())
    assert min(spent[part] for part in script.PARTS) >= 0
    assert sum(spent[part] for part in script.PARTS) == pytest.approx(spent["total"])
