"""The script that made `mini.safetensors`: python -m prometar.embedded.pretrain --out DIR

1. render: every class, with seeds that no split of `textures` uses;
2. vision tower: on clean class and colour labels (pretrain_vision.py);
3. text tower: vision locked, on captions that seldom name the class (captions.py, pretrain_text.py).
Writes mini.safetensors (float16; the token table sparsely, see weights.py) and pretrain.log. The rows of the
token table that no caption uses stay N(0, 0.02) from numpy's PCG64(0).
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch

from prometar.embedded.captions import CaptionSettings
from prometar.embedded.pretrain_text import TextSettings, build_corpus, image_features, train_text
from prometar.embedded.pretrain_vision import VisionSettings, render_images, train_vision
from prometar.embedded.weights import TOKEN_TABLE, initial_token_table, load_config, pack


class Log:
    """Prints lines and keeps them, each with the seconds since the start."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(f"{time.monotonic() - self.start:7.1f} s  {line}")
        print(self.lines[-1], flush=True)


def build(config: dict[str, Any], seed: int) -> Any:
    """A `mini` with fresh weights; open_clip draws them from torch's global generator, which is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = open_clip.CLIP(**config)
    text = config["text_cfg"]
    model.token_embedding.weight.data.copy_(initial_token_table(text["vocab_size"], text["width"]))
    return model


def pretrain(
    vision: VisionSettings, text: TextSettings, captions: CaptionSettings, *, seed: int, log: Log
) -> dict[str, torch.Tensor]:
    """Run all stages; returns the tensors to store."""
    model = build(load_config(), seed)
    images = render_images(vision.images)
    log(f"rendered {len(images.labels)} images")
    train_vision(model.visual, images, vision, seed, log)
    features = image_features(model.visual, images)
    corpus = build_corpus()
    log(f"captions: {corpus.tokens[..., 0].numel()} texts over {len(corpus.used)} tokens")
    rows = train_text(model, features, images, corpus, settings=text, captions=captions, seed=seed, log=log)
    state = model.state_dict()
    state[TOKEN_TABLE][corpus.used] = rows
    return pack(state, corpus.used)


def describe(log: Log, settings: dict[str, Any], seed: int, threads: int) -> None:
    """Log what the run depends on."""
    versions = {"torch": torch.__version__, "open_clip": open_clip.__version__, "numpy": np.__version__}
    log(f"python {platform.python_version()} " + " ".join(f"{k} {v}" for k, v in versions.items()))
    log(f"machine: {platform.system()} {platform.machine()}, CPU only, {threads} threads; seed {seed}")
    for name, value in settings.items():
        log(f"{name}: {dataclasses.asdict(value)}")


def main() -> None:
    """Parse the command line, train, write both files."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded backbone `mini`.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for mini.safetensors and pretrain.log"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads; their number changes last digits"
    )
    parser.add_argument("--vision-steps", type=int, default=VisionSettings.steps)
    parser.add_argument("--text-steps", type=int, default=TextSettings.steps)
    parser.add_argument("--images", type=int, default=VisionSettings.images, help="images a class")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    vision = VisionSettings(images=options.images, steps=options.vision_steps)
    text, captions = TextSettings(steps=options.text_steps), CaptionSettings()
    log = Log()
    describe(log, {"vision": vision, "text": text, "captions": captions}, options.seed, options.threads)
    stored = pretrain(vision, text, captions, seed=options.seed, log=log)
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "mini.safetensors"
    safetensors.torch.save_file(stored, target)
    log(f"wrote mini.safetensors, {target.stat().st_size / 1e6:.2f} MB")
    (options.out / "pretrain.log").write_text("\n".join(log.lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
