"""Checks of custom components on small tensors, before training."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prometar.clip.model import Clip
from prometar.errors import UserError
from prometar.io.custom import convert_errors
from prometar.methods.adapters import Place, TowerName
from prometar.methods.composition import Method, MethodConfig, build, no_image_prompts_error
from prometar.methods.features import Features
from prometar.methods.prompts import Tensors, tokens_by_layer
from prometar.methods.regularizers import ImageDistance, RegularizerInputs, TextDistance
from prometar.methods.section import CustomSection

_NUM_QUERY = 2
_NUM_SUPPORT = 3
_NUM_CLASSES = 4
_TOWERS: tuple[TowerName, ...] = ("text", "vision")


def check_components(config: MethodConfig, clip: Clip) -> Method:
    """Call each custom component of a configuration once on small tensors. Return the built method.

    Raises:
        UserError: the image tower or the tokens of custom prompts do not fit the method, or a component
            fails, changes its inputs in place, or returns wrong names, types or shapes.
    """
    method = build(config)
    require_fitting_tower(config, method, clip)
    generator = torch.Generator().manual_seed(0)

    prompts_reference = getattr(config.prompts, "reference", "prompts")
    with convert_errors(prompts_reference):
        leaves = method.prompts.initialize(clip, torch.zeros(0, dtype=torch.long), generator)
        initial = [leaf.clone() for leaf in leaves.values()]
        tokens = method.prompts.tokens(leaves)
        _require_unchanged(prompts_reference, initial, list(leaves.values()))
        inputs = [*leaves.values(), *tokens.values()]

    def check(section: str, call: Callable[[], tuple[Mapping[str, object], Tensors]]) -> None:
        """Check a component if it is custom. `call` returns results and tensors of the expected shapes."""
        custom = getattr(config, section)
        if not isinstance(custom, CustomSection):
            return
        with convert_errors(custom.reference):
            before = [tensor.clone() for tensor in inputs]
            results, expected = call()
            _require_unchanged(custom.reference, before, inputs)
            for name in results.keys() | expected.keys():
                got = _describe(results.get(name))
                wanted = _describe(expected.get(name))
                if got != wanted:
                    raise UserError(f"{custom.reference} must return {wanted} for {name}, got {got}.")

    if not method.prompts.conditional:  # conditional prompts also return tensors that are not tokens
        check("prompts", lambda: (tokens, _expected_tokens(tokens, clip)))
    # `build` relies on `enters_images`, which custom prompts may lack or set wrongly.
    if method.features.reads_image_prompts and not tokens_by_layer(tokens, "vision"):
        raise no_image_prompts_error(config)
    with convert_errors(getattr(config.modulator, "reference", "modulator")):
        gate = method.modulator.initialize(tokens, generator)
    regularizer_reference = getattr(config.regularizer, "reference", "")
    check("regularizer", lambda: _call_regularizer(method, clip, regularizer_reference))
    check("modulator", lambda: (method.modulator(gate, tokens, tokens), tokens))  # tokens serve as gradients
    check("inner", lambda: _call_inner(method, tokens))
    check("task", lambda: _draw_mix(method))  # the section `task` configures the augmentation
    check("averager", lambda: _call_averager(method, leaves))
    check("optim", lambda: _call_optimizer(method, leaves))
    check("adapters", lambda: _call_adapters(method, clip, generator))
    check("features", lambda: _call_features(method, clip, generator))
    check("logits", lambda: _call_logits(method, clip, generator))
    return method


def require_fitting_tower(config: MethodConfig, method: Method, clip: Clip) -> None:
    """Raise a UserError if features read outputs of image prompts that the image tower does not return.

    SigLIP's attention pool returns one feature per image.
    """
    if method.features.reads_image_prompts and clip.pool is not None:
        raise UserError(
            f"features.kind={config.features.selected_kind} reads the outputs of image prompts. An image "
            "tower with an attention pool (SigLIP) has none. Choose another backbone or method."
        )


def _require_unchanged(reference: str, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    """Raise a UserError if a component has changed a tensor in place. Other computations use it as well."""
    if not all(map(torch.equal, before, after)):
        raise UserError(f"{reference} must not change its inputs in place. Return a new tensor instead.")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _expected_tokens(tokens: Tensors, clip: Clip) -> Tensors:
    """Return a tensor of the expected shape for each name of the form <tower>.<layer>.

    Names of another form are left out, so the caller rejects them.
    """
    widths = {"text": clip.text.width, "vision": clip.vision.width}
    expected: Tensors = {}
    for name, token in tokens.items():
        tower, _, layer = name.partition(".")
        if tower in widths and layer.isdigit():
            expected[name] = torch.empty(len(token), widths[tower])
    return expected


def _call_inner(method: Method, tokens: Tensors) -> tuple[Mapping[str, object], Tensors]:
    """Return the adapted tokens. The tokens also serve as their gradients."""
    if method.inner is None:
        return tokens, tokens
    return method.inner(tokens, tokens), tokens


def _call_averager(method: Method, leaves: Tensors) -> tuple[Mapping[str, object], Tensors]:
    """Return the average after the first of two epochs. If it is {}, the leaves themselves are evaluated."""
    average = method.averager({}, leaves, 0, 2)  # in epoch 0, the previous average is {}
    if not average:
        return leaves, leaves
    return average, leaves


def _call_adapters(
    method: Method, clip: Clip, generator: torch.Generator
) -> tuple[Mapping[str, object], Tensors]:
    """Return the changed weights of the first block of each tower, and what is added to its output."""
    adapters = method.adapters
    inputs = adapters.inputs(adapters.initialize(clip, generator))
    results: dict[str, object] = {}
    expected: Tensors = {}
    for name in _TOWERS:
        tower = getattr(clip, name)
        if not adapters.changes(name):
            continue
        place = Place(name, 0, len(tower.blocks))
        changed = adapters.block(place, tower.blocks[0], inputs)
        for field, weight in tower.blocks[0]._asdict().items():
            results[f"{field} of {name}"] = getattr(changed, field, None)
            expected[f"{field} of {name}"] = weight
        normed = clip.logit_scale.new_zeros(1, 2, tower.width).to(clip.dtype)
        added = adapters.parallel(place, normed, inputs)
        if added is not None:
            results[f"what is added in {name}"] = added
            expected[f"what is added in {name}"] = normed
    return results, expected


def _some_features(clip: Clip) -> Features:
    like = clip.logit_scale
    return Features(
        text_CE=like.new_ones(_NUM_CLASSES, clip.embed_dim),
        image_BE=like.new_ones(_NUM_QUERY, clip.embed_dim),
        prompts_BD=like.new_ones(_NUM_QUERY, clip.vision.width),
        representation_BE=like.new_ones(_NUM_QUERY, clip.embed_dim),
    )


def _call_features(
    method: Method, clip: Clip, generator: torch.Generator
) -> tuple[Mapping[str, object], Tensors]:
    """Return the text and image features that a function of features returns."""
    given = _some_features(clip)
    found = method.features(method.features.initialize(clip, generator), given)
    results = {"text_CE": found.text_CE, "image_BE": found.image_BE}
    return results, {"text_CE": given.text_CE, "image_BE": given.image_BE}


def _call_logits(
    method: Method, clip: Clip, generator: torch.Generator
) -> tuple[Mapping[str, object], Tensors]:
    """Return the loss, and the logits of base and of new classes."""
    leaves = method.logits.initialize(clip, _NUM_CLASSES, generator)
    features = _some_features(clip)
    scale = clip.logit_scale
    labels_B = torch.zeros(_NUM_QUERY, dtype=torch.long, device=scale.device)
    weights_B = scale.new_full((_NUM_QUERY,), 1 / _NUM_QUERY)
    results = {
        "the loss": method.logits.loss(leaves, features, labels_B, weights_B, scale),
        "base classes": method.logits(leaves, features, scale, new_classes=False),
        "new classes": method.logits(leaves, features, scale, new_classes=True),
    }
    logits_BC = scale.new_zeros(_NUM_QUERY, _NUM_CLASSES)
    return results, {"the loss": scale, "base classes": logits_BC, "new classes": logits_BC}


def _call_optimizer(method: Method, leaves: Tensors) -> tuple[Mapping[str, object], Tensors]:
    """Return leaves and slots after an update by an optimizer, and tensors of the expected shapes."""
    slots = method.optimizer.initialize(leaves)
    gradient = {name: torch.ones_like(leaf) for name, leaf in leaves.items()}
    updated, new_slots = method.optimizer(leaves, gradient, slots, lr=0.1, num_updates=0)
    results: dict[str, object] = dict(updated)
    expected = dict(leaves)
    for slot in slots.keys() | new_slots.keys():
        for name, leaf in leaves.items():
            results[f"{slot} of {name}"] = new_slots.get(slot, {}).get(name)
            expected[f"{slot} of {name}"] = leaf
    return results, expected


def _draw_mix(method: Method) -> tuple[Mapping[str, object], Tensors]:
    mix = method.augmentation.draw(_NUM_QUERY, _NUM_SUPPORT, np.random.default_rng(0))
    results = {} if mix is None else {"lam": mix.lam, "partner": mix.partner}
    return results, {name: torch.empty(_NUM_QUERY) for name in results}


def _call_regularizer(method: Method, clip: Clip, reference: str) -> tuple[Mapping[str, object], Tensors]:
    """Return a regularizer's distances and terms for random features, and tensors of the expected shapes.

    The backward pass runs too. It fails if an operation in place has changed a tensor that it needs.

    Raises:
        UserError: the regularizer changes its inputs. The message starts with `reference`.
    """

    def features(count: int, *, prompted: bool) -> Tensor:
        rows = torch.randn(count, clip.embed_dim, dtype=clip.working_dtype, device=clip.device)
        return F.normalize(rows.requires_grad_(prompted), dim=-1)

    weights = torch.full((_NUM_QUERY,), 1 / _NUM_QUERY, dtype=clip.working_dtype, device=clip.device)
    text = features(_NUM_CLASSES, prompted=True)
    frozen_text = features(_NUM_CLASSES, prompted=False)
    images = features(_NUM_QUERY, prompted=True)
    frozen_images = features(_NUM_QUERY, prompted=False)
    scale = weights.new_tensor(100.0)
    inputs = RegularizerInputs(text, frozen_text, images, frozen_images, weights, scale)
    before = [tensor.detach().clone() for tensor in (text, frozen_text, images, frozen_images)]
    results: dict[str, object] = {}
    expected: Tensors = {}
    for term, _ in method.regularizer.terms:
        if isinstance(term, TextDistance | ImageDistance):
            label = f"the distances of {_NUM_QUERY} pairs"
            results[label] = term.distance(images, frozen_images)
            expected[label] = torch.empty(_NUM_QUERY)
        results[term.name] = term(inputs)
        expected[term.name] = torch.empty(())
    _require_unchanged(reference, before, [text, frozen_text, images, frozen_images])
    for result in results.values():
        if isinstance(result, Tensor) and result.requires_grad:
            result.sum().backward(retain_graph=True)
    return results, expected
