"""Parts of one's own, called once on small tensors: what they get wrong is one line before any training.

Built-in parts are not called: their tests have done so.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import numpy as np
import torch
from torch import Tensor

from prometar.clip.model import Clip
from prometar.config.settings import Config
from prometar.errors import UserError
from prometar.methods.composition import Method, build
from prometar.methods.meta_tasks import Augmentation, Mix
from prometar.methods.prompts import Leaves, Prompts, enters_images
from prometar.methods.regularizers import Views
from prometar.parts.reference import failing

_QUERY, _SUPPORT, _CLASSES = 2, 3, 4
_DRAWS = "must draw from the generator that it is given alone"


def probe(config: Config, clip: Clip) -> Method:
    """The method of a configuration, after its own parts have been called.

    Raises:
        UserError: a part fails, or returns something of another kind or shape.
    """
    method, own = build(config), config.own

    def calling(section: str) -> AbstractContextManager[None]:
        return failing(own[section]) if section in own else nullcontext()

    with calling("prompts"):
        leaves = _initial(own.get("prompts"), partial(method.prompts.init, clip, torch.zeros(0).long()), clip)
        tokens = method.prompts.tokens(leaves)
        if "prompts" in own:
            _require_leaves(own["prompts"], "tokens", tokens, clip)
            if not method.prompts.conditional:
                _require_tokens(own["prompts"], tokens, clip, method.prompts)
    with calling("modulator"):
        gate = _initial(own.get("modulator"), partial(method.modulator.init, tokens), clip)
        if "modulator" in own:
            if method.modulator.constant is not None:
                _require_number(own["modulator"], "constant", method.modulator.constant)
            else:
                _require_same(own["modulator"], tokens, method.modulator(gate, tokens, tokens), clip)
    if "inner" in own and method.inner is not None:
        with calling("inner"):
            _require_number(own["inner"], "lr", method.inner.lr)
            _require_number(own["inner"], "outer_weight", method.inner.outer_weight)
            _require_same(own["inner"], tokens, method.inner(tokens, tokens), clip)
    if "averager" in own:
        with calling("averager"):
            average = method.averager({}, leaves, 0, config.train.epochs)
            _require_names(own["averager"], leaves if average else {}, average, clip)
    if "task" in own:
        with calling("task"):
            hash(method.augmentation)  # runs of equal ones share a draw
            _require_mix(own["task"], method.augmentation)
    if "regularizer" in own:
        with calling("regularizer"):
            _require_numbers(own["regularizer"], method, clip)
    return method


def _initial(name: str | None, init: Callable[[torch.Generator], Leaves], clip: Clip) -> Leaves:
    """What a part starts from; of the user's own `name`, only tensors that its generator decides."""
    leaves = init(torch.Generator().manual_seed(0))
    if name is not None:
        _require_leaves(name, "init", leaves, clip)
        _require_drawn(name, "init", leaves, init(torch.Generator().manual_seed(0)))
    return leaves


def _require_leaves(name: str, what: str, found: object, clip: Clip) -> None:
    wanted, kind = f"{name}: {what} must return a dict of tensors by name", clip.working_dtype
    if not isinstance(found, dict):
        raise UserError(f"{wanted}, found {type(found).__name__}")
    for key, leaf in found.items():
        if not isinstance(key, str) or not isinstance(leaf, Tensor):
            raise UserError(f"{wanted}, found {key!r}: {type(leaf).__name__}")
        if leaf.dtype != kind:
            raise UserError(f"{wanted}, each of clip.working_dtype ({kind}): {key} is {leaf.dtype}")


def _require_drawn(name: str, what: str, drawn: Leaves, again: Leaves) -> None:
    """Raises a UserError where equal generators have led to other numbers: nobody could train that again."""
    if drawn.keys() != again.keys() or not all(torch.equal(drawn[key], again[key]) for key in drawn):
        raise UserError(f"{name}: {what} {_DRAWS}")


def _require_number(name: str, what: str, found: object) -> None:
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise UserError(f"{name}: {what} must be a number, found {found!r:.60}")


def _require_mix(name: str, augmentation: Augmentation) -> None:
    mix, again = (augmentation.draw(_QUERY, _SUPPORT, np.random.default_rng(0)) for _ in range(2))
    for found in (mix, again):
        if found is not None and not isinstance(found, Mix):
            raise UserError(f"{name}: draw must return a methods.meta_tasks.Mix or None, found {found!r:.60}")
    if mix is None or again is None:
        if mix is not again:
            raise UserError(f"{name}: draw {_DRAWS}")
        return
    if mix.lam.shape != (_QUERY,):
        raise UserError(f"{name}: lam must be one number a query image, found {tuple(mix.lam.shape)}")
    partners = mix.partner.tolist()
    if len(partners) != _QUERY or not {*partners} <= {*range(_SUPPORT)} or mix.partner.is_floating_point():
        raise UserError(
            f"{name}: partner must be one index a query image, of {_SUPPORT} support images, found {partners}"
        )
    drawn, other = ({k: v for k, v in each._asdict().items() if v is not None} for each in (mix, again))
    _require_drawn(name, "draw", drawn, other)


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


def _require_same(name: str, given: Leaves, found: Leaves, clip: Clip) -> None:
    _require_names(name, given, found, clip)
    for key, tensor in given.items():
        if found[key].shape != tensor.shape:
            raise UserError(f"{name}: {key} must be {tuple(tensor.shape)}, found {tuple(found[key].shape)}")


def _require_names(name: str, given: Iterable[str], found: Leaves, clip: Clip) -> None:
    _require_leaves(name, "__call__", found, clip)
    if set(given) != set(found):
        odd = min(set(given) ^ set(found))
        raise UserError(f"{name} must return the tensors that it is given: '{odd}' is in one of both alone")


def _require_numbers(name: str, method: Method, clip: Clip) -> None:
    views, taken = _views(method, clip), ["ce"]
    for term in method.regularizer.terms:
        if term.name in taken:
            raise UserError(f"{name}: a term cannot be called '{term.name}', as another loss is: rename it")
        taken.append(term.name)
        found = term(views)
        if not isinstance(found, Tensor) or found.shape != ():
            what = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise UserError(f"{name} must make one number of a batch, a tensor of shape (), found {what}")


def _views(method: Method, clip: Clip) -> Views:
    """What a step would show the method's terms."""
    generator = torch.Generator().manual_seed(0)

    def features(count: int) -> Tensor:
        rows = torch.randn(count, clip.embed_dim, generator=generator)
        return (rows / rows.norm(dim=-1, keepdim=True)).to(dtype=clip.working_dtype, device=clip.device)

    text, frozen_text, image, frozen_image = map(features, (_CLASSES, _CLASSES, _QUERY, _QUERY))
    weights = torch.full((_QUERY,), 1 / _QUERY, dtype=clip.working_dtype, device=clip.device)
    return Views(
        text,
        frozen_text if method.regularizer.uses_text else None,
        image,
        frozen_image if method.uses_images else None,
        weights,
        weights.new_tensor(100.0),
    )
