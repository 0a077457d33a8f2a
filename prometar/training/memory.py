"""Estimated memory of a run, for the resource plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from prometar.clip.model import Clip, tensors_of
from prometar.config.settings import Config
from prometar.data.splits.objective import FewShotSplit
from prometar.methods.composition import build
from prometar.methods.modulators import Gate
from prometar.methods.prompts import enters_images
from prometar.training.session import MOST_IMAGES

PROCESSES = 950 * 2**20
"""Bytes of a trainer and its stream's task before any tensor: Python, torch, Ray and open_clip."""

# Floats that a step holds per image or class, in multiples of tokens x width x layers of its tower, and a
# gate with its momenta as a multiple of the weights. Fitted to counted peaks of ViT-B/32, ViT-B/16 and
# ViT-L/14 with 1 to 500 classes and batches of 1 to 128 images.
_IMAGE_FORWARD, _IMAGE_FIRST_ORDER, _IMAGE_SECOND_ORDER = 1.0, 16.0, 60.0
_CLASS_FIRST_ORDER, _CLASS_SECOND_ORDER = 0.5, 2.5
_GATE = 0.45


@dataclass(frozen=True)
class Footprint:
    """Sizes that determine the memory of a run.

    Args:
        weights: Bytes of the backbone's weights.
        image, text: Tokens x width x layers of an image, and of a class.
        num_classes: Largest number of classes in training.
        images: Bytes of scored images in the cache.
    """

    weights: int
    image: int
    text: int
    num_classes: int
    images: int = 0

    @classmethod
    def of(cls, clip: Clip, splits: Sequence[FewShotSplit]) -> "Footprint":
        """Return the footprint of runs on any of these splits."""
        scored = {items for split in splits for items in split.evaluations.values()}
        images = min(sum(map(len, scored)) * 3 * clip.image_size**2, MOST_IMAGES)
        tokens = (clip.image_size // clip.patch_weight.shape[-1]) ** 2 + 1
        image = tokens * clip.vision.width * len(clip.vision.blocks)
        text = 77 * clip.text.width * len(clip.text.blocks)
        weights = sum(tensor.nbytes for tensor in tensors_of(clip))
        return cls(weights, image, text, max(len(split.classnames) for split in splits), images)

    def memory(self, config: Config, *, on_gpu: bool = False) -> int:
        """Return the bytes of a machine's memory that a run takes.

        Args:
            on_gpu: The tensors of a step are in a GPU's memory.

        Example:
            >>> mini = Footprint(weights=3 * 2**20, image=50_000, text=50_000, num_classes=12)
            >>> mini.memory(Config()) / 2**30 < 1
            True
        """
        process = PROCESSES + self.images + self.weights
        if on_gpu:
            return process
        method = build(config)
        second = method.inner is not None and method.inner.second_order
        per_image = (_IMAGE_SECOND_ORDER if second else _IMAGE_FIRST_ORDER) * self.image
        if not enters_images(method.prompts):
            per_image = _IMAGE_FORWARD * self.image
        per_class = (_CLASS_SECOND_ORDER if second else _CLASS_FIRST_ORDER) * self.text
        gate = _GATE * self.weights if isinstance(method.modulator, Gate) else 0
        return int(process + gate + 4 * (config.train.batch_size * per_image + self.num_classes * per_class))
