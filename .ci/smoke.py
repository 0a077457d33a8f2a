"""Smoke test of the installed package without extras: train a run, export its prompts, classify an image."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import prometar


def main() -> None:
    for name in ("ray", "optuna", "plotly"):
        assert find_spec(name) is None, f"{name} is installed: use an environment without extras"
    command = [str(Path(sys.executable).with_name("prometar"))]
    settings = ["--set", "train.epochs=1", "--set", "data.shots=1"]
    subprocess.run([*command, "train", "--dataset", "cells", *settings, "--out", "run"], check=True)
    subprocess.run([*command, "evaluate", "run"], check=True)
    subprocess.run([*command, "export", "run", "--to", "prompts.safetensors"], check=True)
    from PIL import Image

    names = prometar.load("prompts.safetensors").predict(Image.new("RGB", (64, 64))).names
    print(f"without extras: trained, exported, and classified as {names[0]}")
    refused = subprocess.run([*command, "search"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1, refused
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert ".[study]" in refused.stderr, refused.stderr


if __name__ == "__main__":
    main()
