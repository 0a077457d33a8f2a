"""Modules that the first step of a worker imports. Unneeded ones would cost each worker about a second."""

import subprocess
import sys

STEP = """
import sys
from prometar.config.settings import Config
from prometar.data.streaming.stream import stream_local
from prometar.training.epoch import rates_of, train_step
from prometar.training.run import build_run, initial_state
run = build_run(Config().override({"data.shots": 2}), "all_classes")
pictures = next(iter(stream_local(run.order, run.dataset.source)))
train_step(run, initial_state(run), pictures, rates_of(run.config, 1))
print(sorted({"torch._dynamo", "open_clip", "ray", "optuna", "pandas"} & set(sys.modules)))
"""


def test_a_step_imports_no_compiler_and_nothing_of_studies() -> None:
    done = subprocess.run([sys.executable, "-c", STEP], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
