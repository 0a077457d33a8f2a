"""Text tower, forward and backward into the prompts: whole sequences of every class against packed rows.

    python benchmarks/text_tower.py [--classes 24 100] [--repeats 3] [--threads 2] [--quick] [--json FILE]

ViT-B/16's text tower with random weights, float32, IVLP's prompts (4 tokens in each of 9 layers); "a photo
of a <name>." with names of ImageNet classes. The baseline runs all 77 tokens of every class through every
layer, as the released code does (`tests/parity/released.py`). Sides run in processes of their own, in turn.
A pass is the normalised features of all classes and the gradient of a fixed weighted sum of them, after one
that is not counted. `tests/unit/clip` proves that both compute the same; here the largest relative
difference of a prompt's gradient norm stands beside.
"""

import argparse
import sys
import time
from collections.abc import Callable

import open_clip
import torch
import torch.nn.functional as F
from common import BACKBONE, ROOT, Figures, arguments, describe, in_turn, median_of, table, tell, write_json
from step import plain_clip
from torch import Tensor

from prometar.clip.model import Clip
from prometar.clip.openclip import load_backbone, tokenize
from prometar.clip.text import TextInput, text_pass
from prometar.config.settings import Config
from prometar.methods.composition import build
from prometar.methods.prompts import layers
from prometar.step.prompted_clip import build_model, prompt_texts

SIDES = ("plain", "ours")


def names(num_classes: int) -> list[str]:
    """ImageNet class names, spread over the whole list so that neighbours share no words by kinship."""
    every = list(open_clip.IMAGENET_CLASSNAMES)
    return [every[k * len(every) // num_classes] for k in range(num_classes)]


Backward = Callable[[Tensor], list[Tensor]]
"""From a cotangent of the features to the prompts' gradients."""


def forward_of(side: str, num_classes: int) -> Callable[[], tuple[Tensor, Backward]]:
    """A side's forward pass: normalised features (C, E), and the backward pass to follow."""
    method = build(Config(method="ivlp"))
    tokens = tokenize(prompt_texts(names(num_classes), method.prompts, init="a photo of a", template="{}"))
    clip = load_backbone(BACKBONE, "random").clip
    leaves = method.prompts.init(clip, tokens[0, 1:5], torch.Generator().manual_seed(0))
    prompts = {name: leaf for name, leaf in leaves.items() if name.startswith("text.")}
    if side == "ours":
        text = build_model(clip, method.prompts, tokens).text
        assert isinstance(text, TextInput)
        return lambda: ours(clip, text, layers(prompts, "text"))
    sys.path.insert(0, str(ROOT))
    from tests.parity.released import text_features

    plain = plain_clip(BACKBONE)
    prompts = {name: leaf.requires_grad_() for name, leaf in prompts.items()}

    def forward() -> tuple[Tensor, Backward]:
        features = text_features(plain, tokens, prompts)
        return features, lambda g: list(torch.autograd.grad(features, list(prompts.values()), g))

    return forward


def ours(clip: Clip, text: TextInput, prompts: dict[int, Tensor]) -> tuple[Tensor, Backward]:
    """The pass that training runs; only the normalisation goes through autograd."""
    with torch.no_grad():
        raw, one = text_pass(clip, text, prompts)
    raw.requires_grad_()
    features = F.normalize(raw, dim=-1)

    def backward(g: Tensor) -> list[Tensor]:
        (cotangent,) = torch.autograd.grad(features, raw, g)
        with torch.no_grad():
            pulled = one.pull(cotangent[None])
        return [pulled[layer][0] for layer in prompts]

    return features, backward


def measure(side: str, classes: int, passes: int) -> Figures:
    """Seconds of forward and of backward in each counted pass, and a fingerprint of the gradient."""
    forward = forward_of(side, classes)
    seconds: dict[str, list[float]] = {"forward": [], "backward": [], "both": []}
    for _ in range(passes + 1):
        started = time.perf_counter()
        features, backward = forward()
        weights = torch.linspace(-1, 1, features.numel()).view_as(features)
        done = time.perf_counter()
        gradient = backward(weights)
        ended = time.perf_counter()
        seconds["forward"].append(done - started)
        seconds["backward"].append(ended - done)
        seconds["both"].append(ended - started)
    fingerprint = [float(g.norm()) for g in gradient]
    return {name: values[1:] for name, values in seconds.items()} | {"gradient_norms": fingerprint}


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--classes", type=int, nargs="+", default=[24, 100])
        parser.add_argument("--passes", type=int, default=2, help="counted passes of a process")

    args = arguments(__doc__, add, repeats=3)
    if args.side:
        return tell(measure(**args.side))
    if args.quick:
        args.classes, args.repeats, args.passes = [24], 1, 1
    cases = [(side, n) for n in args.classes for side in SIDES]
    rounds = in_turn([{"side": side, "classes": n, "passes": args.passes} for side, n in cases], args)
    print(describe(args.threads))
    print(f"{BACKBONE}, medians of {args.repeats * args.passes} passes, seconds")
    print(show(dict(zip(cases, rounds, strict=True)), args.classes))
    return write_json(args, rounds)


def show(rounds: dict[tuple[str, int], list[Figures]], classes: list[int]) -> str:
    rows = []
    for n in classes:
        plain, ours = rounds["plain", n], rounds["ours", n]
        both = [median_of(side, "both") for side in (plain, ours)]
        theirs, mine = (torch.tensor(side[0]["gradient_norms"]) for side in (plain, ours))
        differ = float(((theirs - mine).abs() / theirs).max())
        parts = [median_of(ours, name) for name in ("forward", "backward")]
        rows.append((n, *both, both[0] / both[1], *parts, f"{differ:.0e}"))
    head = ("classes", "plain s", "ours s", "ratio", "our forward s", "our backward s", "gradients differ by")
    return table(head, rows)


if __name__ == "__main__":
    main()
