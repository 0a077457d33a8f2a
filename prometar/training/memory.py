"""Memory estimates, used to plan the resources of runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prometar.clip.model import Clip, tensors_of
from prometar.config.settings import Config
from prometar.data.datasets.dataset import Items
from prometar.data.splits.objective import FewShotSplit
from prometar.methods.adapters import TowerName
from prometar.methods.composition import Method, build
from prometar.methods.modulators import Gate
from prometar.training.cache import MAX_BATCH_BYTES

PROCESS_BYTES = 950 * 2**20
"""Memory of a training process and its data stream without tensors (Python, torch, Ray, open_clip)."""

_FLOAT_BYTES = 4  # float32

# A step needs this number of floats:
#     images per batch x floats_per_image x factor of images + classes x floats_per_class x factor of classes
# The factors depend on whether the step needs second derivatives (second order) or not (first order). An
# image tower without learned tensors has the factor _IMAGE_FORWARD.

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
# measured peaks as the factors of the towers with hand-written derivatives.
_GATE = 0.45

_TEXT_TOKENS = 77  # of CLIP's text towers


@dataclass(frozen=True)
class Footprint:
    """Sizes that determine the memory of a run.

    Args:
        weight_bytes: Bytes of the backbone's weights.
        floats_per_image: Floats per image in the vision tower: tokens x width x layers.
        floats_per_class: Floats per class in the text tower: tokens x width x layers.
        num_classes: Number of training classes, or its maximum over several splits.
        cache_bytes: Bytes of cached evaluation images.
        shapes: The backbone on the device `meta`, where tensors have only shapes. None to neglect learned
            tensors.
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
        evaluated: set[Items] = set()  # splits may share evaluation sets
        for split in splits:
            evaluated.update(split.evaluations.values())
        num_images = sum(len(items) for items in evaluated)
        bytes_per_image = 3 * clip.image_size**2  # RGB, one byte per channel
        patches_per_side = clip.image_size // clip.patch_weight.shape[-1]
        image_tokens = patches_per_side**2 + 1  # with the class token
        return cls(
            weight_bytes=sum(tensor.nbytes for tensor in tensors_of(clip)),
            floats_per_image=image_tokens * clip.vision.width * len(clip.vision.blocks),
            floats_per_class=_TEXT_TOKENS * clip.text.width * len(clip.text.blocks),
            num_classes=max(len(split.classnames) for split in splits),
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
        images = config.train.batch_size * self._image_factor(method) * self.floats_per_image
        classes = self.num_classes * self._class_factor(method) * self.floats_per_class
        # The optimizer keeps tensors for each leaf, such as the momentum of SGD.
        num_slots = len(method.optimizer.initialize({"leaf": torch.zeros(1)}))
        copies = 1 + num_slots
        gate_bytes = 0.0
        if isinstance(method.modulator, Gate):
            gate_bytes = _GATE * self.weight_bytes * copies / 2  # _GATE is for two copies
        leaf_bytes = self._leaf_bytes(method) * copies
        return int(process_bytes + gate_bytes + leaf_bytes + _FLOAT_BYTES * (images + classes))

    def _image_factor(self, method: Method) -> float:
        """Return the floats that a step needs per image, as a multiple of `floats_per_image`."""
        second_order = _is_second_order(method)
        if not method.changes("vision"):
            return _IMAGE_FORWARD
        if _may_use_autograd(method):
            factor = _IMAGE_AUTOGRAD_SECOND_ORDER if second_order else _IMAGE_AUTOGRAD_FIRST_ORDER
            return factor * self._share_of_blocks(method, "vision")
        return _IMAGE_SECOND_ORDER if second_order else _IMAGE_FIRST_ORDER

    def _class_factor(self, method: Method) -> float:
        """Return the floats that a step needs per class, as a multiple of `floats_per_class`."""
        second_order = _is_second_order(method)
        if method.traits.class_aware:
            return _CLASS_AWARE_SECOND_ORDER if second_order else _CLASS_AWARE_FIRST_ORDER
        factor = _CLASS_SECOND_ORDER if second_order else _CLASS_FIRST_ORDER
        # The share is below 1 only with autograd, as for images, or 0 if the text features are constant.
        return factor * self._share_of_blocks(method, "text")

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


def _is_second_order(method: Method) -> bool:
    """Return True if the step of a method needs second derivatives."""
    return method.inner is not None and method.inner.second_order


def _may_use_autograd(method: Method) -> bool:
    """Return True if autograd may differentiate the image tower of a method that changes it.

    The hand-written derivatives do not cover adapters, inserted prompts, and features that read the outputs
    at the image prompts. Adapters count even if they change only the text tower.
    """
    return method.changes_blocks or method.traits.inserts or method.features.reads_image_prompts
