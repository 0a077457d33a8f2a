"""Evaluation images a second, against the bare vision tower's forward on the same batches.

    python benchmarks/evaluation.py [--classes 24] [--images 128] [--repeats 3] [--threads 2] [--quick]
        [--json FILE]

ViT-B/16 with random weights, float32, IVLP's prompts (4 tokens in each of 9 layers of both towers), random
pixels in batches of 64. Evaluation is the whole of `prometar.training.scoring.accuracy` from uint8 images on:
classes encoded once, normalising, embedding, the prompted vision tower, logits. Two baselines get
normalised images and stop at the features of the unprompted tower, both with torch's fused attention and
without gradients: open_clip's own (every token through every layer), and `prometar.clip.vision` without
prompts (SiLU folded into the weights, CLS alone in the last layer). Evaluation is held to the faster one.
"""

import argparse
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import open_clip
import torch
from common import BACKBONE, Figures, arguments, describe, in_turn, median_of, table, tell, write_json
from text_tower import names

from prometar.clip.openclip import Backbone, load_backbone, tokenize
from prometar.clip.vision import embed_images, encode_image
from prometar.config.settings import Config
from prometar.data.streaming.plan import EVAL_BATCH_SIZE
from prometar.data.streaming.stream import Batch
from prometar.methods.composition import build
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.training.scoring import accuracy

SIDES = ("open_clip", "bare", "ours")


def batches_of(backbone: Backbone, num_images: int, classes: int) -> list[Batch]:
    """Random pixels in evaluation's batches."""
    rng, size = np.random.default_rng(0), backbone.clip.image_size
    counts = [min(EVAL_BATCH_SIZE, num_images - k) for k in range(0, num_images, EVAL_BATCH_SIZE)]
    return [
        Batch(step, rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), rng.integers(0, classes, n))
        for step, n in enumerate(counts)
    ]


def evaluation(side: str, backbone: Backbone, batches: list[Batch], classes: int) -> Callable[[], Any]:
    """What a side does with all batches."""
    if side == "ours":
        method = build(Config(method="ivlp"))
        tokens = tokenize(prompt_texts(names(classes), method.prompts, init="a photo of a", template="{}"))
        leaves = method.prompts.init(backbone.clip, tokens[0, 1:5], torch.Generator().manual_seed(0))
        model = build_model(backbone.clip, method.prompts, tokens)
        return lambda: accuracy(backbone, model, leaves, batches)
    pixels = [backbone.normalise(torch.from_numpy(batch.images)) for batch in batches]
    if side == "bare":
        clip = backbone.clip
        return lambda: [encode_image(clip, embed_images(clip, images)) for images in pixels]
    logging.disable(logging.WARNING)  # it would warn of random weights
    visual = open_clip.create_model(backbone.name, pretrained=None).eval().visual
    return lambda: [visual(images) for images in pixels]


@torch.inference_mode()
def measure(side: str, images: int, classes: int) -> Figures:
    """Images a second over all batches, after one batch that is not counted."""
    loaded = load_backbone(BACKBONE, "random")
    batches = batches_of(loaded, images, classes)
    evaluation(side, loaded, batches[:1], classes)()
    run = evaluation(side, loaded, batches, classes)
    started = time.perf_counter()
    run()
    return {"rate": images / (time.perf_counter() - started)}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--classes", type=int, default=24)
        parser.add_argument("--images", type=int, default=128)

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return tell(measure(**args.side))
    if args.quick:
        args.images, args.repeats = 16, 1
    work = {"images": args.images, "classes": args.classes}
    rounds = in_turn([{"side": side, **work} for side in SIDES], args)
    theirs, bare, mine = (median_of(side, "rate") for side in rounds)
    print(describe(args.threads))
    print(f"{BACKBONE}, {args.images} images, medians of {args.repeats} rounds, images/s")
    head = ("classes", "open_clip", "bare tower", "evaluation", "evaluation / faster of both")
    print(table(head, [(args.classes, theirs, bare, mine, mine / max(theirs, bare))]))
    return write_json(args, rounds)


if __name__ == "__main__":
    main()
