"""Trained prompts as a program that needs no prometar: the image tower with its prompts, and the classes.

Where each image has its own text features (conditional prompts) there is no such program.
"""

import io
import json
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.export import Dim

from prometar.backbone.vision import embed_images, encode_image
from prometar.device import fetch
from prometar.errors import UserError, WorkError
from prometar.inference.classifier import Classifier
from prometar.io.files import resolved, write_atomically
from prometar.logs import unlogged
from prometar.methods.prompts import layers
from prometar.methods.regularizers import similarity

_MOST_ONNX_BYTES = 2**31 - 2**24  # a protocol buffer holds 2 GiB, the graph itself included


class ImageClassifier(torch.nn.Module):
    """uint8 images (B, S, S, 3) to float32 logits (B, C): all that `Classifier.predict` does behind Pillow.

    The classes' normalised text features (C, E) are inside, or, with `classes_as_input`, a second input.

    Raises:
        UserError: the text features depend on the image.
    """

    def __init__(self, classifier: Classifier, *, classes_as_input: bool = False) -> None:
        super().__init__()
        if classifier.prompts.conditional:
            raise UserError(
                f"the prompts of {classifier.config.method} make other text features for each image: no "
                "program of the image tower and fixed classes does that; export them with --format prompts"
            )
        classifier = _in_float32(classifier)
        with torch.no_grad():
            tokens = classifier.prompts.tokens(dict(classifier.leaves))
        self._vision = layers(tokens, "vision")
        text_CE = torch.from_numpy(classifier.text_features())
        clip = classifier.backbone.clip
        # No text is read from here on: its tower would be half of the memory.
        clip = replace(
            clip, text=replace(clip.vision, blocks=()), token_embedding=clip.token_embedding[:0].clone()
        )
        self._backbone = replace(classifier.backbone, clip=clip)
        size = clip.image_size
        self.example: dict[str, Tensor] = {"images": torch.zeros(2, size, size, 3, dtype=torch.uint8)}
        self.axes = {"images": {0: Dim("batch")}}
        self._text_CE = None if classes_as_input else text_CE
        if classes_as_input:
            self.example["text_features"] = text_CE[:1].repeat(3, 1)
            self.axes["text_features"] = {0: Dim("classes")}
        self.eval()  # nothing here differs in training; the exporters warn
        self(**self.example)  # keeps the backbone's constants: those of a trace would be no numbers

    @property
    def num_bytes(self) -> int:
        """Of the image tower."""
        return self._backbone.clip.num_bytes

    @torch.no_grad()
    def forward(self, images: Tensor, text_features: Tensor | None = None) -> Tensor:
        clip = self._backbone.clip
        features_BE = encode_image(clip, embed_images(clip, self._backbone.normalise(images)), self._vision)
        text_CE = self._text_CE if text_features is None else text_features
        assert text_CE is not None
        return clip.logit_scale * similarity(F.normalize(features_BE, dim=-1), text_CE)


def _in_float32(classifier: Classifier) -> Classifier:
    """A copy on the CPU; 16-bit weights stay rounded, as the prompts were trained on them."""
    clip = classifier.backbone.clip.to(device="cpu", dtype=torch.float32)
    leaves = {name: leaf.float() for name, leaf in fetch(dict(classifier.leaves)).items()}
    return replace(classifier, backbone=replace(classifier.backbone, clip=clip), leaves=leaves)


@dataclass(frozen=True)
class Format:
    """A kind of program file.

    suffix: of its name. needs: the packages that make it. encode: a program and its texts by name to bytes.
    """

    suffix: str
    needs: tuple[str, ...]
    encode: Callable[[ImageClassifier, Mapping[str, str]], bytes]


def _onnx(program: ImageClassifier, texts: Mapping[str, str]) -> bytes:
    if (size := program.num_bytes) > _MOST_ONNX_BYTES:
        raise WorkError(
            f"the image tower has {size:,} bytes, and an ONNX file at most 2 GiB: use --format torch"
        )
    with _quiet():
        exported = torch.onnx.export(
            program,
            kwargs=program.example,
            dynamic_shapes=program.axes,
            input_names=list(program.example),
            output_names=["logits"],
            dynamo=True,
            verbose=False,
        )
    assert exported is not None
    model = exported.model_proto
    for key, value in texts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    return bytes(model.SerializeToString())


def _torch(program: ImageClassifier, texts: Mapping[str, str]) -> bytes:
    with _quiet():
        exported = torch.export.export(
            program, (), kwargs=program.example, dynamic_shapes=program.axes, strict=False
        )
        exported.graph_module.graph.eliminate_dead_code()
        exported.example_inputs = None  # the one pickle that the file would hold
        file = io.BytesIO()
        torch.export.save(exported, file, extra_files={f"{name}.json": text for name, text in texts.items()})
    return file.getvalue()


@contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporters say of their own insides is nothing that a user could mend."""
    with unlogged(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


FORMATS: Mapping[str, Format] = {
    "onnx": Format(".onnx", ("onnx", "onnxscript"), _onnx),
    "torch": Format(".pt2", (), _torch),
}
"""What `prometar export --format` knows besides prompts."""


def require_program_target(to: Path, name: str) -> Format:
    """The format by name, if a program can be made so and written to `to`: before anything is loaded.

    Raises:
        UserError: an unknown format, another suffix, a file that is there, or a package that is missing.
    """
    if name not in FORMATS:
        raise UserError(f"--format '{name}': expected prompts, {' or '.join(FORMATS)}")
    form = FORMATS[name]
    if to.suffix != form.suffix:
        raise UserError(f"--to {to}: expected a name that ends in {form.suffix} with --format {name}")
    resolved(to)
    if os.path.lexists(to):
        raise UserError(f"--to {to} is there already: take a new name")
    missing = [package for package in form.needs if find_spec(package) is None]
    if missing:
        raise UserError(f"--format {name} needs {' and '.join(missing)}: pip install '.[{name}]'")
    return form


def write_program(
    classifier: Classifier, to: Path, form: Format, card: Mapping[str, Any], *, classes_as_input: bool = False
) -> None:
    """Write a classifier as a program; the file also holds its card, and the names of its own classes.

    Raises:
        UserError: the text features depend on the image. WorkError: too large, or it cannot be written.
    """
    program = ImageClassifier(classifier, classes_as_input=classes_as_input)
    texts = {"card": json.dumps(card)}
    if not classes_as_input:
        texts["classnames"] = json.dumps(classifier.classnames)
    write_atomically(to, form.encode(program, texts))
