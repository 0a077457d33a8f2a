"""Memory estimates, used to plan the resources of runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prometar.clip.model import Clip, tensors_of
from prometar.config.settings import Config
from prometar.data.splits.objective import FewShotSplit
from prometar.methods.adapters import TowerName
from prometar.methods.composition import Method, build
from prometar.methods.modulators import Gate
from prometar.training.cache import MAX_BATCH_BYTES

PROCESS_BYTES = 950 * 2**20
"""Memory of a training process and its data stream without tensors (Python, torch, Ray, open_clip)."""

_FLOAT_BYTES = 4  # float32

# Floats of a step:
#     images per batch x floats_per_image x _IMAGE factor + classes x floats_per_class x _CLASS factor
# An image tower without learned tensors has the factor _IMAGE_FORWARD. The other factors depend on whether
# the step needs second derivatives.

# Towers with hand-written derivatives. Fitted to measured peaks: ViT-B/32, ViT-B/16, ViT-L/14, 1 to 500
# classes and 1 to 128 images per batch.
_IMAGE_FORWARD = 1.0
_IMAGE_FIRST_ORDER = 16.0
_IMAGE_SECOND_ORDER = 60.0
_CLASS_FIRST_ORDER = 0.5
_CLASS_SECOND_ORDER = 2.5

# Image towers that autograd differentiates, counted with ViT-B/16. Autograd stores activations only from the
# first block that learned tensors enter.
_IMAGE_AUTOGRAD_FIRST_ORDER = 13.5
_IMAGE_AUTOGRAD_SECOND_ORDER = 43.0

# Texts with class-aware prompts, counted with ViT-B/16. Unlike other texts, they share no prefix.
_CLASS_AWARE_FIRST_ORDER = 1.5
_CLASS_AWARE_SECOND_ORDER = 4.8

# Bytes of a gate (learned modulator) and its momentum, as a multiple of weight_bytes. Fitted to the same
# peaks as the factors of hand-written derivatives.
_GATE = 0.45


@dataclass(frozen=True)
class Footprint:
    """Sizes that determine the memory of a run.

    Args:
        weight_bytes: Bytes of the backbone's weights.
        floats_per_image: Floats per image in the vision tower: tokens x width x layers.
        floats_per_class: Floats per class in the text tower: tokens x width x layers.
        num_classes: Number of training classes, or its maximum over several splits.
        cache_bytes: Bytes of cached evaluation images.
        shapes: The backbone on the device `meta`, which has shapes only. None to neglect learned tensors.
    """

    weight_bytes: int
    floats_per_image: int
    floats_per_class: int
    num_classes: int
    cache_bytes: int = 0
    shapes: Clip | None = None

    @classmethod
    def of(cls, clip: Clip, splits: Sequence[FewShotSplit]) -> "Footprint":
        """Return the footprint of a process that trains on these splits one after another."""
        evaluated = {items for split in splits for items in split.evaluations.values()}
        num_images = sum(len(items) for items in evaluated)
        bytes_per_image = 3 * clip.image_size**2
        tokens = (clip.image_size // clip.patch_weight.shape[-1]) ** 2 + 1
        per_image = tokens * clip.vision.width * len(clip.vision.blocks)
        per_class = 77 * clip.text.width * len(clip.text.blocks)  # CLIP's texts have 77 tokens
        weights = sum(tensor.nbytes for tensor in tensors_of(clip))
        num_classes = max(len(split.classnames) for split in splits)
        return cls(
            weight_bytes=weights,
            floats_per_image=per_image,
            floats_per_class=per_class,
            num_classes=num_classes,
            cache_bytes=min(num_images * bytes_per_image, MAX_BATCH_BYTES),
            shapes=clip.to(device=torch.device("meta")),
        )

    def memory_bytes(self, config: Config, *, on_gpu: bool = False) -> int:
        """Return the estimated main memory of a run, in bytes.

        Args:
            on_gpu: True if the run uses a GPU, which then holds the tensors of each step.

        Example:
            >>> mini = Footprint(3 * 2**20, floats_per_image=50_000, floats_per_class=50_000, num_classes=12)
            >>> mini.memory_bytes(Config()) / 2**30 < 1
            True
        """
        process_bytes = PROCESS_BYTES + self.cache_bytes + self.weight_bytes
        if on_gpu:
            return process_bytes
        method = build(config)
        second_order = method.inner is not None and method.inner.second_order
        if not method.changes("vision"):
            per_image = _IMAGE_FORWARD
        elif _may_use_autograd(method):
            per_image = _IMAGE_AUTOGRAD_SECOND_ORDER if second_order else _IMAGE_AUTOGRAD_FIRST_ORDER
            per_image *= self._share_of_blocks(method, "vision")
        else:
            per_image = _IMAGE_SECOND_ORDER if second_order else _IMAGE_FIRST_ORDER
        if method.traits.class_aware:
            per_class = _CLASS_AWARE_SECOND_ORDER if second_order else _CLASS_AWARE_FIRST_ORDER
        else:
            per_class = _CLASS_SECOND_ORDER if second_order else _CLASS_FIRST_ORDER
            # Below 1 only with autograd, as for images, or 0 if the text features are constant.
            per_class *= self._share_of_blocks(method, "text")
        images = config.train.batch_size * per_image * self.floats_per_image
        classes = self.num_classes * per_class * self.floats_per_class
        # Slots: tensors that the optimizer keeps per leaf, such as the momentum of SGD.
        num_slots = len(method.optimizer.initialize({"leaf": torch.zeros(1)}))
        copies = 1 + num_slots
        gate_bytes = 0.0
        if isinstance(method.modulator, Gate):
            gate_bytes = _GATE * self.weight_bytes * copies / 2  # _GATE is for two copies
        leaf_bytes = self._leaf_bytes(method) * copies
        return int(process_bytes + gate_bytes + leaf_bytes + _FLOAT_BYTES * (images + classes))

    def _share_of_blocks(self, method: Method, tower: TowerName) -> float:
        """Return the share of a tower's blocks from the first that learned tensors enter."""
        if self.shapes is None:
            return 1.0
        shapes = self.shapes.text if tower == "text" else self.shapes.vision
        num_blocks = len(shapes.blocks)
        return 1 - method.first_block(tower, num_blocks) / num_blocks

    def _leaf_bytes(self, method: Method) -> int:
        """Return the bytes of the learned tensors, without the gate."""
        if self.shapes is None:
            return 0
        context = torch.zeros(method.prompts.num_context, dtype=torch.long)
        leaves = method.initialize(self.shapes, context, self.num_classes, torch.Generator())
        return sum(leaf.nbytes for leaf in leaves.values())


def _may_use_autograd(method: Method) -> bool:
    """Return True if autograd may differentiate the image tower of a method that changes it.

    The hand-written derivatives do not cover adapters, inserted prompts, and features that read the outputs
    at the image prompts. Adapters count even if they change only the text tower.
    """
    return method.changes_blocks or method.traits.inserts or method.features.reads_image_prompts
