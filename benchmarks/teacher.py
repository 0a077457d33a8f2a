"""Frozen text features of all classes in 60 templates: whole sequences, packed rows, and from the cache.

    python benchmarks/teacher.py [--classes 100] [--plain-templates 2] [--repeats 3] [--threads 2] [--quick]
        [--json FILE]

ViT-B/16's text tower with random weights, float32, names of ImageNet classes. The baseline is open_clip's
own encode_text (77 tokens a text, fused attention, no gradients), a template with all classes at a time as
in the released code; it is measured on --plain-templates of the 60 and scaled to all. Ours computes all 60
into an empty cache; `cached` is the next process's time: the weights' digest and the entry. Tokenizing
counts on every side, loading the model on none. Features of the baseline's templates are compared.
"""

import argparse
import logging
import os
import time
from tempfile import TemporaryDirectory

import open_clip
import torch
import torch.nn.functional as F
from common import BACKBONE, Figures, arguments, describe, in_turn, median_of, table, tell, write_json
from text_tower import names

from prometar.clip.feature_cache import cached_text, text_digest
from prometar.clip.frozen_features import frozen_text
from prometar.clip.openclip import TEMPLATES, load_backbone, tokenize

COMPARED = 8  # classes whose features the sides hand over


def plain(classes: int, templates: int) -> Figures:
    """Seconds of a text, and the mean features of the first templates."""
    logging.disable(logging.WARNING)  # it would warn of random weights
    torch.manual_seed(0)  # as `load_backbone` draws its random weights
    model = open_clip.create_model(BACKBONE, pretrained=None).eval()
    called = names(classes)
    with torch.inference_mode():
        model.encode_text(tokenize(called[:8]))
        started = time.perf_counter()
        by_template = [
            model.encode_text(tokenize([template.format(name) for name in called]))
            for template in TEMPLATES[:templates]
        ]
        seconds = time.perf_counter() - started
        features = F.normalize(torch.stack(by_template).mean(dim=0), dim=-1)
    return {"a_text": seconds / (classes * templates), "features": features[:COMPARED].tolist()}


def ours(classes: int, templates: int) -> Figures:
    """Seconds into an empty cache, and out of it: digest and features."""
    clip, called = load_backbone(BACKBONE, "random").clip, names(classes)
    few = frozen_text(clip, tokenize, called, TEMPLATES[:templates])
    figures: Figures = {"features": few[:COMPARED].tolist()}
    with TemporaryDirectory() as folder:
        os.environ["PROMETAR_CACHE"] = folder
        for name in ("computed", "cached"):
            started = time.perf_counter()
            digest = text_digest(clip)
            hashed = time.perf_counter()
            cached_text(clip, digest, tokenize, called, TEMPLATES)
            figures |= {name: time.perf_counter() - started, "digest": hashed - started}
    return figures


SIDES = {"plain": plain, "ours": ours}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--classes", type=int, default=100)
        parser.add_argument("--plain-templates", type=int, default=2, help="of the 60, for the baseline")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return tell(SIDES[args.side.pop("side")](**args.side))
    if args.quick:
        args.classes, args.repeats, args.plain_templates = 10, 1, 1
    work = {"classes": args.classes, "templates": args.plain_templates}
    rounds = in_turn([{"side": side, **work} for side in SIDES], args)
    print(describe(args.threads))
    print(f"{BACKBONE}, {len(TEMPLATES)} templates, medians of {args.repeats} rounds, seconds; "
          f"the baseline from {args.plain_templates} templates")  # fmt: skip
    print(show(rounds, args.classes))
    return write_json(args, rounds)


def show(rounds: list[list[Figures]], classes: int) -> str:
    plain, ours = rounds
    whole = median_of(plain, "a_text") * classes * len(TEMPLATES)
    computed, cached, digest = (median_of(ours, name) for name in ("computed", "cached", "digest"))
    theirs, mine = (torch.tensor(side[0]["features"]) for side in (plain, ours))
    differ = f"{float((theirs - mine).abs().max()):.0e}"
    head = ("classes", "plain s", "ours s", "ratio", "cached s", "its digest s", "features differ by")
    return table(head, [(classes, whole, computed, whole / computed, cached, digest, differ)])


if __name__ == "__main__":
    main()
