"""One ProMetaR step on each family of backbones: open_clip's own modules under autograd, against ours.

    python benchmarks/backbones.py [--classes 4] [--quick] [--docs docs/backbones.md]

Small models of random weights (12 layers, 64 patches, SigLIP 2's 4; those of tests/support/families.py,
made larger), batch 4, in float32. What is counted is the same on any machine: kernels, which are dispatched
ATen operations that are no views, and the bytes of their operands and results. The plain side is the
released procedure over open_clip's modules, whose attention is written out, as fused kernels have no second
derivative. Both sides take the step from one start, and the script fails where their prompts differ.
"""

import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from common import ROOT, parser_of, publish, table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from prometar.backbone.clip import Clip
from prometar.backbone.openclip import load_backbone
from prometar.config.settings import Config
from prometar.logs import unlogged
from prometar.methods.composition import build
from prometar.methods.meta_tasks import one_class_out
from prometar.methods.prompts import layers
from prometar.step.iteration import Rates, step
from prometar.step.meta_batch import make_batch
from prometar.step.prompted_clip import build_model, prompt_texts
from prometar.step.state import State

sys.path.insert(0, str(ROOT))
from tests.parity.released import Leaves, Released
from tests.support import families
from tests.support.kernels import Kernels
from tests.support.plain_towers import plain_image, plain_language, plain_text

WIDER, DEEPER, LARGER = 8, 4, 4
_WIDTHS = (
    "embed_dim", "width", "head_width", "d_model", "d_kv", "d_ff", "encoder_ffn_dim", "hidden_size",
    "intermediate_size",
)  # fmt: skip
_DEPTHS = ("layers", "depth", "num_layers", "encoder_layers", "num_hidden_layers")
_SIZES = ("image_size", "img_size", "context_length")
FAMILIES = {
    "ViT, a tree of tokens": "tiny-plain", "with layer scale": "tiny-layer-scale",
    "CLIPA": "tiny-clipa", "SigLIP": "tiny-siglip", "SigLIP 2": "tiny-siglip2", "EVA01": "tiny-eva",
    "mean of the patches": "tiny-gap", "MobileCLIP2-L": "tiny-mobileclip", "CoCa": "tiny-coca",
    "RoBERTa": "tiny-roberta", "mT5": "tiny-mt5", "NLLB": "tiny-nllb",
}  # fmt: skip


def scaled(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tiny configuration, of useful size."""
    times = dict.fromkeys(_WIDTHS, WIDER) | dict.fromkeys(_DEPTHS, DEEPER) | dict.fromkeys(_SIZES, LARGER)
    return {
        key: scaled(value) if isinstance(value, dict) else value * times[key] if key in times else value
        for key, value in config.items()
    }


def register(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Make the models known to open_clip."""
    plain = {"embed_dim": 24, "text_cfg": families.TEXT, "vision_cfg": families.VISION}
    patch.setattr(families, "_BERT", scaled(families._BERT))
    for name, value in scaled(families.TINY).items():
        patch.setitem(families.TINY, name, value)
    for name, config in {**families.CONFIGS, "tiny-plain": plain}.items():
        patch.setitem(families.CONFIGS, name, scaled(config))
    for name, (kind, settings, text) in families.LANGUAGE.items():
        patch.setitem(families.LANGUAGE, name, (kind, scaled(settings), text))
    patch.setattr(families, "VISION", scaled(families.VISION))
    patch.setattr(families, "TEXT", scaled(families.TEXT))
    patch.setattr(families, "EMBED", families.EMBED * WIDER)
    patch.setattr(families, "LENGTH", families.LENGTH * LARGER)
    families.register_languages(patch, folder)


class Plain(Released):
    """The released procedure over open_clip's own modules."""

    def __init__(self, model: Any, clip: Clip, tokens: Tensor, teacher: Tensor, state: State) -> None:
        self.model, self.start = model, clip.form.num_start
        super().__init__(
            clip, tokens, teacher, state.prompts, state.gate, 50, 20, 8, 5e-4, 5e-4, 0.0025, 1e-6
        )

    def text(self, prompts: Leaves) -> Tensor:
        language = hasattr(getattr(self.model, "text", None), "pooler")
        tower = plain_language if language else plain_text
        return F.normalize(tower(self.model, self.tokens, layers(prompts, "text"), self.start), dim=-1)

    def image(self, images: Tensor, prompts: Leaves) -> Tensor:
        return plain_image(self.model, images, layers(prompts, "vision"))


def sides(name: str, num_classes: int) -> tuple[Callable[[], Leaves], Callable[[], Leaves]]:
    """One step, plain and ours, from one start; each gives the prompts after it."""
    with unlogged():
        torch.manual_seed(0)
        model = open_clip.create_model(name, pretrained_text=False).eval().requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), weights := Path(folder, "weights.pt"))
        backbone = load_backbone(name, str(weights))
    clip, method = backbone.clip, build(Config())
    names = [f"class number {i}" for i in range(num_classes)]
    tokens = backbone.tokenize(prompt_texts(names, method.prompts, init="a photo of a", template="{}"))
    generator = torch.Generator().manual_seed(0)
    teacher = F.normalize(torch.randn(num_classes, clip.embed_dim, generator=generator), dim=-1)
    prompts = method.prompts.init(clip, backbone.words("a photo of a"), generator)
    state = State.start(prompts, method.modulator.init(prompts, generator))
    images = torch.randn(4, 3, clip.image_size, clip.image_size, generator=generator)
    labels = torch.tensor([0, 1, 2, 2])
    task = one_class_out(labels, method.augmentation, np.random.default_rng(0))
    assert task is not None
    reference = Plain(model, clip, tokens, teacher, state)

    def plain() -> Leaves:
        with sdpa_kernel(SDPBackend.MATH):
            reference.direct(reference.modulated(reference.losses(images, labels)))
            support = reference.losses(images[~task.is_query], labels[~task.is_query])
            adapted = reference.inner(reference.modulated(support))
            reference.meta(reference.query_loss(adapted, images, labels, task))
        return reference.prompts

    built = build_model(clip, method.prompts, tokens, teacher)

    def ours() -> Leaves:
        batch = make_batch(clip, method, images, labels, task)
        return step(built, method, state, batch, Rates(0.0025, 1e-6))[0].prompts

    return plain, ours


def counted(run: Callable[[], Leaves]) -> tuple[int, int, Leaves]:
    with Kernels() as kernels:
        prompts = run()
    return kernels.kernels.total(), kernels.bytes.total(), prompts


def row(family: str, name: str, num_classes: int) -> tuple[object, ...]:
    (kernels, size, expected), (ours, moved, found) = map(counted, sides(name, num_classes))
    for leaf, prompt in found.items():
        torch.testing.assert_close(prompt, expected[leaf].detach(), rtol=1e-3, atol=1e-5)
    megabytes = (f"{number / 1e6:,.0f}" for number in (size, moved))
    return (family, f"{kernels:,}", f"{ours:,}", f"{kernels / ours:.1f}", *megabytes, f"{size / moved:.1f}")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="two families")
    parser.add_argument("--docs", type=Path, help="put the table there")
    args = parser.parse_args()
    chosen = dict(list(FAMILIES.items())[:2]) if args.quick else FAMILIES
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        register(patch, Path(folder))
        rows = [row(family, name, args.classes) for family, name in chosen.items()]
    head = ("family", "kernels, plain", "ours", "ratio", "MB, plain", "ours", "ratio")
    publish(table(head, rows), args.docs, "speed")


if __name__ == "__main__":
    main()
