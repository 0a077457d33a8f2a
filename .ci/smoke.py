"""The installed package without extras: a run trains, its prompts are exported and classify an image."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import prometar


def main() -> None:
    for name in ("ray", "optuna", "plotly"):
        assert find_spec(name) is None, f"{name} is installed: use an environment without extras"
    command = [str(Path(sys.executable).with_name("prometar"))]
    train = [
        "train",
        "--dataset",
        "cells",
        "--set",
        "train.epochs=1",
        "--set",
        "data.shots=1",
        "--out",
        "run",
    ]
    subprocess.run([*command, *train], check=True)
    subprocess.run([*command, "evaluate", "run"], check=True)
    subprocess.run([*command, "export", "run", "--to", "prompts.safetensors"], check=True)
    from PIL import Image

    names = prometar.load("prompts.safetensors").predict(Image.new("RGB", (64, 64))).names
    print(f"without extras: trained, exported, and classified as {names[0]}")
    said = subprocess.run([*command, "search"], capture_output=True, text=True, check=False)
    assert said.returncode == 1, said
    assert said.stderr.count("\n") == 1, said.stderr
    assert "prometar[study]" in said.stderr, said.stderr


if __name__ == "__main__":
    main()
