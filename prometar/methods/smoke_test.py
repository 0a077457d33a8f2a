"""One small call of every custom component, so that a mistake is one line before any training."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from prometar.clip.model import Clip
from prometar.errors import UserError
from prometar.io.custom import failing
from prometar.methods.composition import Method, Sections, build
from prometar.methods.part import Custom
from prometar.methods.prompts import Leaves
from prometar.methods.regularizers import ImageDistance, TextDistance, Views

_QUERY, _SUPPORT, _CLASSES = 2, 3, 4


def smoke_test(config: Sections, clip: Clip) -> Method:
    """Build the method of a configuration, and call its custom components once.

    Raises:
        UserError: a component fails, or returns another shape than it must.
    """
    method = build(config)
    parts = {
        name: getattr(config, name)
        for name in ("prompts", "regularizer", "modulator", "inner", "task", "averager")
    }
    custom = {name: part.reference for name, part in parts.items() if isinstance(part, Custom)}
    generator, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)

    def calling(section: str) -> AbstractContextManager[None]:
        return failing(custom[section]) if section in custom else nullcontext()

    with calling("prompts"):
        leaves = method.prompts.initialize(clip, torch.zeros(0, dtype=torch.long), generator)
        tokens = method.prompts.tokens(leaves)
        if not method.prompts.conditional:
            _require_tokens(custom.get("prompts", ""), tokens, clip)
    with calling("modulator"):
        gate = method.modulator.initialize(tokens, generator)
        if "modulator" in custom and method.modulator.constant is None:
            _require_alike(custom["modulator"], tokens, method.modulator(gate, tokens, tokens))
    if "inner" in custom and method.inner is not None:
        with calling("inner"):
            _require_alike(custom["inner"], tokens, method.inner(tokens, tokens))
    if "averager" in custom:
        with calling("averager"):
            _require_alike(custom["averager"], leaves, method.averager({}, leaves, 0, 2) or leaves)
    if "task" in custom:
        with calling("task"):
            mix = method.augmentation.draw(_QUERY, _SUPPORT, rng)
            if mix is not None and (mix.lam.shape, mix.partner.shape) != ((_QUERY,), (_QUERY,)):
                raise UserError(f"{custom['task']}: draw must return one lam and one partner per query image")
    if "regularizer" in custom:
        with calling("regularizer"):
            views = _views(method, clip)
            for term in method.regularizer.terms:
                if isinstance(term, TextDistance | ImageDistance):
                    rows = term.distance(views.image_BE, views.image_BE)
                    _require_shape(f"{custom['regularizer']} of (N, E) features", rows, (_QUERY,))
                _require_shape(custom["regularizer"], term(views), ())
    return method


def _require_tokens(name: str, tokens: Leaves, clip: Clip) -> None:
    widths = {"text": clip.text.width, "vision": clip.vision.width}
    for key, token in tokens.items():
        tower, _, layer = key.partition(".")
        if tower not in widths or not layer.isdigit():
            raise UserError(f"{name}: '{key}' names no layer: write text.0, vision.11, ...")
        _require_shape(f"{name}: {key}", token, (len(token), widths[tower]))


def _require_alike(name: str, given: Leaves, found: Leaves) -> None:
    if found.keys() != given.keys():
        raise UserError(f"{name} must return the tensors that it is given, found {', '.join(found)}")
    for key, tensor in given.items():
        _require_shape(f"{name}: {key}", found[key], tuple(tensor.shape))


def _require_shape(name: str, found: object, shape: tuple[int, ...]) -> None:
    what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
    if what != shape:
        raise UserError(f"{name} must be a tensor of shape {shape}, found {what}")


def _views(method: Method, clip: Clip) -> Views:
    """Return random features as a step would show them to a regularizer."""

    def features(count: int) -> Tensor:
        rows = torch.nn.functional.normalize(torch.randn(count, clip.embed_dim), dim=-1)
        return rows.to(dtype=clip.working_dtype, device=clip.device)

    weights = torch.full((_QUERY,), 1 / _QUERY, dtype=clip.working_dtype, device=clip.device)
    return Views(
        features(_CLASSES),
        features(_CLASSES) if method.regularizer.uses_text else None,
        features(_QUERY),
        features(_QUERY) if method.uses_images else None,
        weights,
        weights.new_tensor(100.0),
    )
