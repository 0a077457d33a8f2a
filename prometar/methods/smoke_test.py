"""Smoke test of custom components, so that errors are reported before training."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.model import Clip
from prometar.errors import UserError
from prometar.io.custom import component_errors
from prometar.methods.composition import Method, Sections, build
from prometar.methods.part import CustomPart
from prometar.methods.prompts import Leaves
from prometar.methods.regularizers import ImageDistance, RegularizerInputs, TextDistance

_QUERY, _SUPPORT, _CLASSES = 2, 3, 4


def build_and_test(config: Sections, clip: Clip) -> Method:
    """Build the method of a configuration, and call each of its custom components once.

    Raises:
        UserError: a component fails, or returns a wrong shape.
    """
    method, generator = build(config), torch.Generator().manual_seed(0)

    def check(section: str, call: Callable[[], tuple[Mapping[str, object], Leaves]]) -> None:
        """Check a custom component. `call` returns its results, and tensors of the expected shapes."""
        part = getattr(config, section)
        if not isinstance(part, CustomPart):
            return
        with component_errors(part.reference):
            found, like = call()
            for key in found.keys() | like.keys():
                shape, expected = (_shape(tensors.get(key)) for tensors in (found, like))
                if shape != expected:
                    raise UserError(
                        f"{part.reference}: {key} must be a tensor of shape {expected}, found {shape}"
                    )

    with component_errors(getattr(config.prompts, "reference", "prompts")):
        leaves = method.prompts.initialize(clip, torch.zeros(0, dtype=torch.long), generator)
        tokens = method.prompts.tokens(leaves)
    check("prompts", lambda: ({}, {}) if method.prompts.conditional else (tokens, _expected(tokens, clip)))
    with component_errors(getattr(config.modulator, "reference", "modulator")):
        gate = method.modulator.initialize(tokens, generator)
    check("regularizer", lambda: _distances(method, clip))
    check("modulator", lambda: (method.modulator(gate, tokens, tokens), tokens))
    check("inner", lambda: (method.inner(tokens, tokens) if method.inner else tokens, tokens))
    check("task", lambda: _task_augmentation(method))
    check("averager", lambda: (method.averager({}, leaves, 0, 2) or leaves, leaves))
    return method


def _shape(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__


def _expected(tokens: Leaves, clip: Clip) -> Leaves:
    """Return tensors of the expected token shapes, for all names of the form <tower>.<layer>."""
    widths = {"text": clip.text.width, "vision": clip.vision.width}
    names = [name for name in tokens if name.partition(".")[0] in widths and name.partition(".")[2].isdigit()]
    return {name: torch.empty(len(tokens[name]), widths[name.partition(".")[0]]) for name in names}


def _task_augmentation(method: Method) -> tuple[Mapping[str, object], Leaves]:
    mix = method.augmentation.draw(_QUERY, _SUPPORT, np.random.default_rng(0))
    found = {} if mix is None else {"lam": mix.lam, "partner": mix.partner}
    return found, {name: torch.empty(_QUERY) for name in found}


def _distances(method: Method, clip: Clip) -> tuple[Mapping[str, object], Leaves]:
    """Return the distances of a regularizer for random features, and tensors of the expected shapes."""

    def features(count: int) -> Tensor:
        rows = F.normalize(torch.randn(count, clip.embed_dim), dim=-1)
        return rows.to(dtype=clip.working_dtype, device=clip.device)

    weights = torch.full((_QUERY,), 1 / _QUERY, dtype=clip.working_dtype, device=clip.device)
    text, images = (features(_CLASSES), features(_CLASSES)), (features(_QUERY), features(_QUERY))
    inputs, found, like = RegularizerInputs(*text, *images, weights, weights.new_tensor(100.0)), {}, {}
    for term, _ in method.regularizer.terms:
        if isinstance(term, TextDistance | ImageDistance):
            label = f"the distances of {_QUERY} features"
            found[label], like[label] = term.distance(*images), weights
        found[term.name], like[term.name] = term(inputs), weights.new_empty(())
    return found, like
