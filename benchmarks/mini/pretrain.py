"""Pre-train `mini` and write mini.safetensors: cd benchmarks && python -m mini.pretrain --out DIR

1. Render images (world.py) with seeds that no split of the suite uses.
2. Train the vision tower on correct class and color labels (pretrain_vision.py).
3. Train the text tower with a frozen vision tower, on poor captions (captions.py, pretrain_text.py).
DIR/vision.safetensors stores the vision tower. If it exists, it is not trained again, so runs with other
captions take minutes. The outputs are pretrain.log and mini.safetensors (float16, with a sparse token table,
see prometar/embedded/weights.py). Token rows that no caption uses keep their initial values, N(0, 0.02) from
PCG64(0) of numpy.

docs/measurements.md describes the datasets.
"""

import argparse
import dataclasses
import functools
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch
from open_clip.transformer import PatchDropout
from suite import SETS
from torch import Tensor

from prometar.embedded.weights import ROW_IDS, ROW_VALUES, TOKEN_TABLE, initial_token_table, mini_config

from .captions import CaptionSettings, Corpus, build_corpus
from .pretrain_text import TextSettings, image_features, train_text
from .pretrain_vision import VisionSettings, render_images, train_vision


class Log:
    """Log of lines with the seconds since the start. Each line is printed and appended to the file `path`."""

    def __init__(self, path: Path) -> None:
        self.start = time.monotonic()
        self.path = path

    def __call__(self, line: str) -> None:
        timed = f"{time.monotonic() - self.start:7.1f} s  {line}"
        print(timed, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(timed + "\n")


def build(config: dict[str, Any], seed: int) -> Any:
    """Return a `mini` with fresh weights. Restores the global generator, which open_clip uses."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = open_clip.CLIP(**config)
    text = config["text_cfg"]
    model.token_embedding.weight.data.copy_(initial_token_table(text["vocab_size"], text["width"]))
    return model


def contexts() -> list[str]:
    """Return CLIP's 80 ImageNet contexts and those of the suite, each with "{}" for the words."""
    return [
        *(make("{}") for make in open_clip.OPENAI_IMAGENET_TEMPLATES),
        *(rendered.template for rendered in SETS.values()),
    ]


@functools.cache
def mini_corpus() -> Corpus:
    """Return the parts of all captions, tokenized by open_clip."""
    return build_corpus(contexts(), open_clip.get_tokenizer("ViT-B-16"))


def pretrain(
    vision: VisionSettings,
    text: TextSettings,
    captions: CaptionSettings,
    *,
    seed: int,
    log: Log,
    vision_file: Path,
) -> dict[str, torch.Tensor]:
    """Run all stages.

    Args:
        vision: Settings of the first stage.
        text: Settings of the second stage.
        captions: Shares of captions.
        seed: Seed of the initial weights and of both stages.
        log: Log of progress.
        vision_file: File of the trained vision tower. If it exists, the first stage is skipped.

    Returns:
        The tensors to store (see `pack`).
    """
    model = build(mini_config(), seed)

    images = render_images(vision.images)
    log(f"rendered {len(images.labels)} images")
    if vision_file.exists():
        model.visual.load_state_dict(safetensors.torch.load_file(vision_file))
        log(f"vision tower: from {vision_file.name}, trained by an earlier run")
    else:
        model.visual.patch_dropout = PatchDropout(vision.dropped)
        train_vision(model.visual, images, vision, seed, log)
        safetensors.torch.save_file(model.visual.state_dict(), vision_file)

    features = image_features(model.visual, images)
    corpus = mini_corpus()
    num_texts = len(corpus.contexts) * sum(len(phrases) for phrases in corpus.phrases)
    log(f"captions: {num_texts} texts over {len(corpus.used)} tokens")
    rows = train_text(model, features, images, corpus, settings=text, captions=captions, seed=seed, log=log)

    state = model.state_dict()
    state[TOKEN_TABLE][corpus.used] = rows
    return pack(state, corpus.used)


def pack(state: dict[str, Tensor], ids: Tensor) -> dict[str, Tensor]:
    """Convert a float32 state dict for storage: float16, with only the rows `ids` of the token table."""
    stored = {
        name: value.detach().half().contiguous() for name, value in state.items() if name != TOKEN_TABLE
    }
    stored[ROW_IDS] = ids.to(torch.int32)
    stored[ROW_VALUES] = state[TOKEN_TABLE].detach()[ids].half().contiguous()
    return stored


def describe(log: Log, settings: dict[str, Any], seed: int, threads: int) -> None:
    """Log the settings and versions that the run depends on."""
    versions = {"torch": torch.__version__, "open_clip": open_clip.__version__, "numpy": np.__version__}
    packages = " ".join(f"{name} {version}" for name, version in versions.items())
    log(f"python {platform.python_version()} {packages}")
    log(f"machine: {platform.system()} {platform.machine()}, CPU only, {threads} threads; seed {seed}")
    for name, value in settings.items():
        log(f"{name}: {dataclasses.asdict(value)}")


def main() -> None:
    """Parse the command line, train, write both files."""
    parser = argparse.ArgumentParser(description="Pre-train the embedded backbone `mini`.")
    parser.add_argument(
        "--out", type=Path, required=True, help="folder for mini.safetensors and pretrain.log"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of training")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, which affect rounding")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    vision = VisionSettings()
    text = TextSettings()
    captions = CaptionSettings()
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "pretrain.log")
    describe(log, {"vision": vision, "text": text, "captions": captions}, options.seed, options.threads)
    vision_file = options.out / "vision.safetensors"
    stored = pretrain(vision, text, captions, seed=options.seed, log=log, vision_file=vision_file)
    target = options.out / "mini.safetensors"
    safetensors.torch.save_file(stored, target)
    log(f"wrote mini.safetensors, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
