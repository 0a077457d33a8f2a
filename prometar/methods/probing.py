"""Parts of one's own, called once on small tensors: what they get wrong is one line before any training.

Built-in parts are not called: their tests have done so.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from prometar.backbone.clip import Clip
from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.methods.composition import Method, build
from prometar.methods.prompts import Leaves, Prompts, enters_images
from prometar.methods.regularizers import Term, Views
from prometar.parts.reference import failing

_QUERY, _SUPPORT, _CLASSES = 2, 3, 4


def probe(config: Config, clip: Clip) -> Method:
    """The method of a configuration, after its own parts have been called.

    Raises:
        UserError: a part fails, or returns something of another kind or shape.
    """
    method, own = build(config), config.own

    def calling(section: str) -> AbstractContextManager[None]:
        return failing(own[section]) if section in own else nullcontext()

    generator = torch.Generator().manual_seed(0)
    with calling("prompts"):
        leaves = method.prompts.init(clip, torch.zeros(0, dtype=torch.long), generator)
        tokens = method.prompts.tokens(leaves)
    if "prompts" in own and not method.prompts.conditional:
        _require_tokens(own["prompts"], tokens, clip, method.prompts)
    with calling("modulator"):
        gate = method.modulator.init(tokens, generator)
        if "modulator" in own and method.modulator.constant is None:
            _require_same(own["modulator"], tokens, method.modulator(gate, tokens, tokens))
    if "inner" in own and method.inner is not None:
        with calling("inner"):
            _require_same(own["inner"], tokens, method.inner(tokens, tokens))
    if "averager" in own:
        with calling("averager"):
            average = method.averager({}, leaves, 0, config.train.epochs)
            _require_names(own["averager"], leaves if average else {}, average)
    if "task" in own:
        with calling("task"):
            hash(method.augmentation)  # runs of equal ones share a draw
            mix = method.augmentation.draw(_QUERY, _SUPPORT, np.random.default_rng(0))
        if mix is not None and mix.lam.shape != (_QUERY,):
            raise UserError(
                f"{own['task']}: lam must be one number a query image, found {tuple(mix.lam.shape)}"
            )
    if "regularizer" in own:
        with calling("regularizer"):
            _require_numbers(own["regularizer"], method.regularizer.terms, clip)
    return method


def _require_tokens(name: str, tokens: Leaves, clip: Clip, prompts: Prompts) -> None:
    towers = {"text": clip.text, "vision": clip.vision}
    for key, token in tokens.items():
        tower, _, layer = key.partition(".")
        if tower not in towers or not layer.isdigit() or int(layer) >= len(towers[tower].blocks):
            raise UserError(f"{name}: '{key}' is no layer of this backbone: write text.0, vision.11, ...")
        if token.dim() != 2 or token.shape[1] != towers[tower].width:
            raise UserError(f"{name}: {key} must be (P, {towers[tower].width}), found {tuple(token.shape)}")
    if not enters_images(prompts) and any(key.startswith("vision.") for key in tokens):
        raise UserError(f"{name}: enters_images is False, and there are tokens for the image tower")
    num_context = prompts.num_context
    found = len(tokens["text.0"]) if "text.0" in tokens else 0
    if found != num_context:
        raise UserError(f"{name}: num_context is {num_context}, and text.0 has {found} tokens")


def _require_same(name: str, given: Leaves, found: Leaves) -> None:
    _require_names(name, given, found)
    for key, tensor in given.items():
        if found[key].shape != tensor.shape:
            raise UserError(f"{name}: {key} must be {tuple(tensor.shape)}, found {tuple(found[key].shape)}")


def _require_names(name: str, given: Iterable[str], found: Leaves) -> None:
    if set(given) != set(found):
        odd = min(set(given) ^ set(found))
        raise UserError(f"{name} must return the tensors that it is given: '{odd}' is in one of both alone")


def _require_numbers(name: str, terms: Iterable[Term], clip: Clip) -> None:
    views, taken = _views(clip), ["ce"]
    for term in terms:
        if term.name in taken:
            raise UserError(f"{name}: a term cannot be called '{term.name}', as another loss is: rename it")
        taken.append(term.name)
        found = term(views)
        if not isinstance(found, Tensor) or found.shape != ():
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"{name} must make one number of a batch, a tensor of shape (), found {what}")


def _views(clip: Clip) -> Views:
    generator = torch.Generator().manual_seed(0)

    def features(count: int) -> Tensor:
        rows = torch.randn(count, clip.embed_dim, generator=generator)
        return (rows / rows.norm(dim=-1, keepdim=True)).to(dtype=clip.working_dtype, device=clip.device)

    text, frozen_text, image, frozen_image = map(features, (_CLASSES, _CLASSES, _QUERY, _QUERY))
    weights = torch.full((_QUERY,), 1 / _QUERY, dtype=clip.working_dtype, device=clip.device)
    return Views(text, frozen_text, image, frozen_image, weights, weights.new_tensor(100.0))
