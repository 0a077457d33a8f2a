"""Smoke test of the installed package without extras.

It trains a run, exports its prompts and classifies an image with them. `prometar search` must explain in one
line which packages are missing.
"""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

import prometar


def main() -> None:
    for name in ("ray", "optuna", "plotly"):
        assert find_spec(name) is None, f"{name} is installed: use an environment without extras"

    program = Path(sys.executable).with_name("prometar")
    settings = ["--set", "train.epochs=1", "--set", "data.shots=1"]
    subprocess.run([program, "train", "--dataset", "cells", *settings, "--out", "run"], check=True)
    subprocess.run([program, "evaluate", "run"], check=True)
    subprocess.run([program, "export", "run", "--to", "prompts.safetensors"], check=True)

    classifier = prometar.load("prompts.safetensors")
    names = classifier.predict(Image.new("RGB", (64, 64))).names
    print(f"without extras: trained, exported, and classified as {names[0]}")

    refused = subprocess.run([program, "search"], capture_output=True, text=True, check=False)
    assert refused.returncode == 1, refused
    assert refused.stderr.count("\n") == 1, refused.stderr
    assert ".[study]" in refused.stderr, refused.stderr


if __name__ == "__main__":
    main()
