"""Image classifier with trained prompts: `prometar.load(FILE).predict(images)`."""

import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from prometar.clip.features import frozen_text_features
from prometar.clip.model import Clip
from prometar.clip.openclip import Backbone, build_backbone, load_clip, require_backbone, tags_of
from prometar.clip.weights import describe_mismatch, weights_digest
from prometar.config.settings import Config
from prometar.data.datasets.dataset import invalid_name_reason, normalize_name
from prometar.data.streaming.order import EVAL_BATCH_SIZE
from prometar.data.streaming.transforms import TransformSpec, exif_orientation, make_image, rotated, to_rgb
from prometar.device import default_device, named_device, send, to_cpu
from prometar.errors import UserError, WorkError, first_line
from prometar.inference.prompt_file import HUB_PREFIX, Card, download_prompts, read_prompts
from prometar.io.custom import source_digest
from prometar.io.files import read_bytes
from prometar.methods.composition import Method, build
from prometar.step.prompted_clip import PromptedClip, build_model, prompt_texts
from prometar.training.backbone import DTYPES
from prometar.training.scoring import make_logits_fn, not_finite_error

ImageInput = Image.Image | str | Path | NDArray[np.uint8]


class Predictions(NamedTuple):
    """Predictions for N images and C classes.

    Attributes:
        names: Most likely class of each image.
        probabilities: Softmax of the logits, float32 (N, C).
        classnames: Classes of the columns of `probabilities`.
    """

    names: tuple[str, ...]
    probabilities: NDArray[np.float32]
    classnames: tuple[str, ...]


@dataclass(frozen=True)
class Classifier:
    """Frozen CLIP with trained prompts, for arbitrary classes.

    Args:
        backbone: Frozen CLIP, with its tokenizer and the normalization of its images.
        method: Components of the method.
        leaves: Trained tensors of the method.
        config: Settings of the training run.
        classnames: Classes of the training run, which `predict` uses by default.
        template: Template of class texts, such as "a photo of a {}.". Not used if text prompts are learned.
        templates: The dataset's other templates by name, for class-aware prompts.
        card: JSON description in the prompt file, or None if the classifier was loaded from a run.
    """

    backbone: Backbone
    method: Method
    leaves: Mapping[str, Tensor]
    config: Config
    classnames: tuple[str, ...]
    template: str
    templates: Mapping[str, str] = field(default_factory=dict)
    card: Card | None = None

    def __repr__(self) -> str:
        """Return a one-line summary without tensors."""
        config = self.config
        num_classes = len(self.classnames)
        return f"<{config.method} on {config.data.name} with {config.backbone.name}, {num_classes} classes>"

    def model(self, classnames: Sequence[str], *, dataset: str | None = None) -> PromptedClip:
        """Return the prompted CLIP for these classes.

        Some methods have another rule for the logits of new classes (argument `new_classes` of `Logits`).
        Classes are new unless they are the training classes in the same order. For some kinds of logits, all
        classes of another dataset are new (`Logits.is_for_training_dataset`).

        Args:
            classnames: Classes to choose from.
            dataset: Name of the dataset of the images. None (unknown) is treated like the training dataset.

        Raises:
            UserError: class names are too long for the text tower.
        """
        texts = prompt_texts(
            classnames,
            self.method.prompts,
            init=self.config.prompts.init,
            template=self.template,
            templates=self.templates,
        )
        clip = self.backbone.clip
        frozen_text_CE: Tensor | None = None
        if self.method.traits.class_aware:
            # Class-aware prompts are computed from the frozen text features of each class.
            regularizer = self.method.regularizer
            templates = regularizer.templates
            if not templates:
                templates = (self.templates.get(regularizer.template_name, self.template),)
            frozen_text_CE = frozen_text_features(clip, self.backbone.tokenize, classnames, templates)
        is_other_dataset = dataset not in (None, self.config.data.name)
        has_new_classes = tuple(classnames) != self.classnames
        if is_other_dataset and self.method.logits.is_for_training_dataset:
            has_new_classes = True
        ids_NT = self.backbone.tokenize(texts)
        return build_model(clip, self.method, ids_NT, frozen_text_CE, new_classes=has_new_classes)

    def predict(
        self,
        images: ImageInput | Sequence[ImageInput],
        *,
        classnames: Sequence[str] | None = None,
        batch_size: int = EVAL_BATCH_SIZE,
    ) -> Predictions:
        """Classify images by the softmax of their scaled cosine similarities to the class texts.

        Photos are rotated as their EXIF data say, like images of your own folders in training.

        Args:
            images: One image or a sequence of images: Pillow images, paths, or uint8 arrays (H, W, 3).
            classnames: Classes to choose from. Default: the training classes.
            batch_size: Images per batch. Default: 64.

        Raises:
            UserError: there are no images, an image has another type, an array is not uint8 of shape
                (H, W, 3), a file is missing, or class names are invalid or repeated.
            WorkError: an image is corrupt, or probabilities are not finite.

        Example:
            >>> import prometar
            >>> prometar.load("prompts.safetensors").predict(["a.jpg", "b.png"]).names  # doctest: +SKIP
            ('striped', 'dotted')
        """
        names = self.classnames if classnames is None else _check_classnames(classnames)
        inputs = _to_sequence(images)
        clip = self.backbone.clip
        logits_fn = make_logits_fn(self.backbone, self.model(names), self.leaves)
        spec = TransformSpec(clip.image_size, train=False, exif_rotation=True)
        batches: list[NDArray[np.float32]] = []
        for batch_number, start in enumerate(range(0, len(inputs), batch_size)):
            pixels: list[NDArray[np.uint8]] = []
            for image in inputs[start : start + batch_size]:
                content, image_path = _read_or_encode(image)
                # Without augmentation, the seed has no effect.
                pixels.append(make_image(spec, content, seed=0, path=image_path))
            images_BHW3 = send(torch.from_numpy(np.stack(pixels)), clip.device)
            logits_BC = logits_fn(images_BHW3, batch_number)
            batches.append(to_cpu(logits_BC.float().softmax(dim=-1)).numpy())
        probabilities = np.concatenate(batches)
        if not np.isfinite(probabilities).all():
            raise not_finite_error(self.backbone)
        predicted = tuple(names[label] for label in probabilities.argmax(axis=1))
        return Predictions(predicted, probabilities, names)


def load(
    path: str | Path, *, pretrained: str | None = None, device: str | None = None, trust_code: bool = False
) -> Classifier:
    """Load a classifier from a file written by `prometar export`, or from the Hugging Face Hub.

    Args:
        path: A file, or hf://owner/name[@revision] with a branch, tag or commit as revision.
        pretrained: Weights of the backbone. Default: as in training. Required if training read a local file.
        device: Device such as "cpu" or "cuda". Default: a GPU if available.
        trust_code: True to import custom components. By default, files that use them are refused.

    Raises:
        UserError: the file is missing or not a prompt file, the weights are missing or not those of training,
            custom components are used without `trust_code`, or the device does not exist.
        WorkError: the file cannot be downloaded from the Hub.
    """
    target = default_device() if device is None else named_device(device)
    if isinstance(path, str) and path.startswith(HUB_PREFIX):
        path = download_prompts(path)
    path = Path(path)
    leaves, card = read_prompts(path)
    config = card.config.require_trusted(str(path), trusted=trust_code)
    name = config.backbone.name
    original = config.backbone.pretrained

    # Names of hubs and folders are refused. With "random", `require_backbone` checks only the name.
    require_backbone(name, "random")
    if pretrained is None and (card.weights_file or _is_local_file(name, original)):
        # Otherwise, a card could make `load` read any local file.
        raise UserError(f"{path} requires a local file of weights. Pass it as pretrained=FILE.")
    used = pretrained or original
    clip = load_clip(name, used)
    if weights_digest(clip) != card.digest:
        raise UserError(
            f"{path} was trained with other weights of {name} than {used or 'the included weights'}. "
            "Pass the original weights as pretrained=FILE."
        )

    method = checked_method(path, config, clip, len(card.classnames), leaves, card.code)
    if not method.changes_blocks:
        clip = clip.folded()
    clip = clip.to(device=target, dtype=DTYPES[config.backbone.precision])
    leaves = {key: leaf.to(clip.device) for key, leaf in leaves.items()}
    backbone = build_backbone(name, original, clip)  # `original` determines the normalization
    backbone = replace(backbone, tf32=config.backbone.precision == "tf32")
    return Classifier(
        backbone=backbone,
        method=method,
        leaves=leaves,
        config=config,
        classnames=card.classnames,
        template=card.template,
        templates=card.templates,
        card=card,
    )


def _is_local_file(name: str, pretrained: str | None) -> bool:
    """Return True if the setting `backbone.pretrained` of a card can only be a local file of weights."""
    if pretrained is None or pretrained == "random":
        return False
    return pretrained not in tags_of(name)


def checked_method(
    path: Path,
    config: Config,
    clip: Clip,
    num_classes: int,
    leaves: Mapping[str, Tensor],
    code: Mapping[str, str],
) -> Method:
    """Return the method of a configuration, after checking that the trained tensors fit it.

    Args:
        path: File of the tensors, for messages.
        config: Settings of the training run.
        clip: Backbone of the training run.
        num_classes: Number of classes of the training run.
        leaves: The trained tensors.
        code: sha256 of the source file of each custom component at the time of training.

    Raises:
        UserError: the tensors have wrong names or shapes, or are not finite, or the source file of a custom
            component that is needed for predictions has changed since training.
    """
    for section in ("prompts", "adapters", "features", "logits"):
        reference = config.custom_components.get(section, "")
        if reference in code and source_digest(reference) != code[reference]:
            raise UserError(f"The code of {reference} has changed since {path} was trained. Restore it.")
    method = build(config)
    # Only names and shapes of the initial tensors are compared, so tokens and seed are arbitrary.
    no_tokens = torch.zeros(0, dtype=torch.long)
    expected = method.initialize(clip, no_tokens, num_classes, torch.Generator())
    problem = describe_mismatch(expected, leaves)
    if problem:
        raise UserError(f"The prompts in {path} do not fit {config.method} ({problem}). Train them again.")
    return method


def _check_classnames(classnames: Iterable[str]) -> tuple[str, ...]:
    """Return class names as a tuple.

    Raises:
        UserError: the argument is not a sequence of strings or is empty, or a name is invalid or repeated.
    """
    if isinstance(classnames, str) or not isinstance(classnames, Iterable):
        raise _classnames_error(f"got {classnames!r:.80}")
    names = tuple(classnames)
    if not names:
        raise _classnames_error("got none")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise _classnames_error(f"{name!r:.80} is not a string")
        reason = invalid_name_reason(name)
        if reason:
            raise _classnames_error(f"{name[:80]!a} {reason}")
        if normalize_name(name) in seen:
            raise _classnames_error(f"{name!r} is repeated")
        seen.add(normalize_name(name))
    return names


def _classnames_error(problem: str) -> UserError:
    """Return the error for an invalid argument `classnames`."""
    return UserError(
        "classnames must be a non-empty sequence of printable, unique names "
        f"(case and underscores are ignored), but {problem}."
    )


def _to_sequence(images: ImageInput | Sequence[ImageInput]) -> Sequence[ImageInput]:
    """Return one image or several images as a sequence.

    Raises:
        UserError: `images` is neither an image nor a sequence of images, or the sequence is empty.
    """
    if isinstance(images, str | Path | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim <= 3:  # an array with four dimensions is a batch
        return [images]
    if not isinstance(images, Sequence | np.ndarray) or len(images) == 0:
        raise UserError(
            "images must be an image or a non-empty sequence of images (paths, Pillow images or uint8 "
            f"arrays), got {images!r:.80}"
        )
    return list(images)


def _read_or_encode(image: ImageInput) -> tuple[bytes, str]:
    """Return an encoded image and its path for messages.

    Images given as pixels are encoded as PPM. Their path is "given as pixels".

    Raises:
        UserError: the file cannot be read, the image has another type, or an array has another type or shape.
        WorkError: a Pillow image is corrupt.
    """
    if isinstance(image, str | Path):
        try:
            return read_bytes(Path(image)), str(image)
        except OSError as error:
            raise UserError(f"Cannot read image {image} ({error.strerror}). Check the path.") from None
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Image.Image):
        raise UserError(
            f"An image must be a path, a Pillow image or a uint8 array, got {type(image).__name__}. For a "
            "tensor (3, H, W) with values in 0..1, pass (255 * tensor).byte().permute(1, 2, 0).numpy()."
        )
    file = io.BytesIO()
    try:
        rotated(to_rgb(image), exif_orientation(image)).save(file, "PPM")
    except Exception as error:  # Pillow reads files lazily and raises errors of many types
        path = getattr(image, "filename", "") or "given as pixels"
        raise WorkError(f"Corrupt image {path} ({first_line(error)}). Remove or replace the image.") from None
    return file.getvalue(), "given as pixels"


def _from_array(array: NDArray[Any]) -> Image.Image:
    """Convert an array to a Pillow image.

    Raises:
        UserError: the array is not uint8 of shape (H, W, 3). Other integers and gray images are accepted if
            Pillow supports them.
    """
    image: Image.Image | None = None
    # The range of floating-point numbers, which Pillow would accept, is unknown.
    if array.ndim >= 2 and array.dtype.kind != "f":
        with suppress(TypeError):  # Pillow does not support the shape or the type of the values
            image = Image.fromarray(array)
    if image is None:
        raise UserError(
            f"An array must be uint8 of shape (H, W, 3), got {array.dtype} of shape {array.shape}. "
            "For values in 0..1, pass (255 * array).astype('uint8'). "
            "For channels first, pass array.transpose(1, 2, 0)."
        )
    return image
