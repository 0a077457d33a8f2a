"""Checks of custom components on small tensors, before training."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

from prometar.clip.model import Clip
from prometar.errors import UserError
from prometar.io.custom import convert_errors
from prometar.methods.adapters import Place, TowerName
from prometar.methods.composition import Method, MethodConfig, build, no_image_prompts_error
from prometar.methods.features import Features
from prometar.methods.optimizers import Slots
from prometar.methods.prompts import Tensors, is_token_name, sample_normal, tokens_by_layer
from prometar.methods.regularizers import ImageDistance, RegularizerInputs, TextDistance
from prometar.methods.section import CustomSection

_NUM_QUERY = 2
_NUM_SUPPORT = 3
_NUM_CLASSES = 4
_TOWERS: tuple[TowerName, ...] = ("text", "vision")


class _Caller(NamedTuple):
    """Caller of the functions of one component, whose errors start with `reference`."""

    reference: str

    def __call__(self, function: Callable[..., Any], *args: object, **kwargs: object) -> Any:
        """Return the result of a function.

        Raises:
            UserError: the function changes a tensor in its arguments in place.
        """
        # Taken before the call, because optimizers may remove tensors from their arguments.
        arguments = _tensors_in((args, kwargs))
        before = [tensor.detach().clone() for tensor in arguments]
        result = function(*args, **kwargs)
        if not all(map(torch.equal, before, arguments)):
            raise UserError(
                f"{self.reference} must not change its inputs in place. Return a new tensor instead."
            )
        return result

    def tensors(self, function: Callable[..., Any], *args: object) -> Tensors:
        """Return the result of a function that returns tensors by name.

        Raises:
            UserError: the function returns something else, or changes its arguments in place.
        """
        result = self(function, *args)
        is_valid = isinstance(result, dict) and all(isinstance(each, Tensor) for each in result.values())
        if not is_valid:
            name = getattr(function, "__name__", "__call__")
            raise UserError(f"{self.reference}: {name} must return a dictionary of tensors.")
        return result


class _Outcome(NamedTuple):
    """Results of a component by name, and tensors that have the expected shapes."""

    results: Mapping[str, object]
    expected: Tensors


def check_components(config: MethodConfig, clip: Clip) -> Method:
    """Call the functions of each custom component on small tensors. Return the built method.

    If results depend on tensors that require gradients, a backward pass follows.

    Raises:
        UserError: the image tower or the tokens of custom prompts do not fit the method, or a component
            fails, changes its inputs in place, or returns wrong names, types or shapes.
    """
    method = build(config)
    require_fitting_tower(config, method, clip)
    generator = torch.Generator().manual_seed(0)

    def check(section: str, call: Callable[[_Caller], _Outcome]) -> None:
        """Check the component of a section if it is custom. `call` calls its functions."""
        custom = getattr(config, section)
        if not isinstance(custom, CustomSection):
            return
        with convert_errors(custom.reference):
            outcome = call(_Caller(custom.reference))
            _require_expected(custom.reference, outcome)
            _differentiate(outcome.results)

    check("prompts", lambda caller: _call_prompts(caller, method, clip, generator))
    check("adapters", lambda caller: _call_adapters(caller, method, clip, generator))
    check("features", lambda caller: _call_features(caller, method, clip, generator))
    check("logits", lambda caller: _call_logits(caller, method, clip, generator))

    leaves = method.initialize(clip, _init_ids(method), _NUM_CLASSES, generator)
    inputs = method.inputs(leaves)
    # `build` relies on `enters_images`, which custom prompts may lack or set wrongly.
    if method.features.reads_image_prompts and not tokens_by_layer(inputs, "vision"):
        raise no_image_prompts_error(config)
    if not isinstance(config.modulator, CustomSection):
        method.modulator.initialize(
            inputs, generator
        )  # fails if the gate's reduction does not fit the prompts

    check("regularizer", lambda caller: _call_regularizer(caller, method, clip, generator))
    check("modulator", lambda caller: _call_modulator(caller, method, inputs, generator))
    check("inner", lambda caller: _call_inner(caller, method, leaves, generator))
    check("task", lambda caller: _draw_mix(caller, method))  # the section `task` configures the augmentation
    check("averager", lambda caller: _call_averager(caller, method, leaves, generator))
    check("optim", lambda caller: _call_optimizer(caller, method, leaves, generator))
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


def _tensors_in(arguments: object) -> list[Tensor]:
    """Return the tensors in the nested arguments of a function."""
    tensors: list[Tensor] = []
    for leaf in tree_leaves(arguments):
        values = vars(leaf).values() if isinstance(leaf, Features) else [leaf]
        tensors += [value for value in values if isinstance(value, Tensor)]
    return tensors


def _require_expected(reference: str, outcome: _Outcome) -> None:
    """Raise a UserError if a result is missing, unexpected, not a tensor, or of another shape."""
    names = dict.fromkeys([*outcome.expected, *outcome.results])
    for name in names:
        got = _describe(outcome.results.get(name))
        wanted = _describe(outcome.expected.get(name))
        if got != wanted:
            raise UserError(f"{reference} must return {wanted} for {name}, got {got}.")


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _differentiate(results: Mapping[str, object]) -> None:
    """Run a backward pass. It fails if an operation in place has changed a tensor that it needs."""
    for result in results.values():
        if isinstance(result, Tensor) and result.requires_grad:
            result.sum().backward(retain_graph=True)


def _differentiable(tensor: Tensor) -> Tensor:
    """Return a copy that requires gradients.

    It is the result of an operation. So a change in place does not fail, and can be reported as such.
    """
    return tensor.detach().clone().requires_grad_().clone()


def _differentiable_each(tensors: Tensors) -> Tensors:
    return {name: _differentiable(tensor) for name, tensor in tensors.items()}


def _sample(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    return sample_normal(shape, 1.0, like=like, generator=generator)


def _sample_each(tensors: Tensors, generator: torch.Generator) -> Tensors:
    """Sample tensors with the names, shapes and data types of the given ones."""
    return {name: _sample(tuple(tensor.shape), tensor, generator) for name, tensor in tensors.items()}


def _sample_features(count: int, clip: Clip, generator: torch.Generator, *, prompted: bool) -> Tensor:
    """Sample normalized features (count, E). They require gradients if `prompted`."""
    features = _sample((count, clip.embed_dim), clip.logit_scale, generator)
    return F.normalize(features.requires_grad_(prompted), dim=-1)


def _init_ids(method: Method) -> Tensor:
    """Return token ids in place of those of `prompts.init`: one per context token."""
    return torch.zeros(method.prompts.num_context, dtype=torch.long)


def _call_prompts(caller: _Caller, method: Method, clip: Clip, generator: torch.Generator) -> _Outcome:
    """Return the tokens, those of text after `condition_tokens` if it is used."""
    prompts = method.prompts
    initial = caller.tensors(prompts.initialize, clip, _init_ids(method), generator)
    tokens = caller.tensors(prompts.tokens, _differentiable_each(initial))
    is_class_aware = method.traits.class_aware
    if not prompts.conditional and not is_class_aware:
        return _Outcome(tokens, _expected_tokens(tokens, clip, num_rows=None))

    # Such prompts also return tensors that are not tokens, for `condition_tokens`.
    num_rows = _NUM_CLASSES if is_class_aware else _NUM_QUERY
    frozen_NE = _sample_features(num_rows, clip, generator, prompted=False)
    conditioned = caller.tensors(prompts.condition_tokens, _differentiable_each(tokens), frozen_NE)
    text_tokens = _tokens_of(conditioned, "text")
    expected = _expected_tokens(text_tokens, clip, num_rows=num_rows)
    if is_class_aware:
        # Class-aware prompts may also have tokens that do not depend on the class.
        shared = {name: token for name, token in text_tokens.items() if token.ndim == 2}
        expected |= _expected_tokens(shared, clip, num_rows=None)

    image_tokens = _tokens_of(tokens, "vision")
    expected |= _expected_tokens(image_tokens, clip, num_rows=None)
    return _Outcome({**text_tokens, **image_tokens}, expected)


def _tokens_of(tensors: Tensors, tower: TowerName) -> Tensors:
    """Return the tensors that are tokens of a tower. The step ignores others."""
    return {
        f"{tower}.{layer}": layer_tokens for layer, layer_tokens in tokens_by_layer(tensors, tower).items()
    }


def _expected_tokens(tokens: Tensors, clip: Clip, *, num_rows: int | None) -> Tensors:
    """Return a tensor of the expected shape for each name of the form <tower>.<layer>.

    The shape is (tokens, width), or (num_rows, tokens, width) if tokens depend on images or classes. Names of
    another form are left out, so they are rejected.
    """
    widths = {"text": clip.text.width, "vision": clip.vision.width}
    expected: Tensors = {}
    for name, token in tokens.items():
        if not is_token_name(name):
            continue
        width = widths[name.partition(".")[0]]
        num_tokens = token.shape[-2] if token.ndim > 1 else 1
        shape = (num_tokens, width) if num_rows is None else (num_rows, num_tokens, width)
        expected[name] = torch.empty(shape)
    return expected


def _call_adapters(caller: _Caller, method: Method, clip: Clip, generator: torch.Generator) -> _Outcome:
    """Return the changed weights of some blocks of each tower, and what is added to their outputs."""
    adapters = method.adapters
    leaves = caller.tensors(adapters.initialize, clip, generator)
    inputs = caller.tensors(adapters.inputs, _differentiable_each(leaves))
    results: dict[str, object] = {}
    expected: Tensors = {}
    for name in _TOWERS:
        tower = getattr(clip, name)
        if not adapters.changes(name):
            continue
        num_blocks = len(tower.blocks)
        for index in (0, num_blocks - 1):
            place = Place(name, index, num_blocks)
            block = tower.blocks[index]
            changed = caller(adapters.block, place, block, inputs)
            for field, weight in block._asdict().items():
                label = f"{field} of {name} block {index}"
                results[label] = getattr(changed, field, None)
                expected[label] = weight

            normed = _differentiable(_sample((1, 2, tower.width), clip.token_embedding, generator))
            added = caller(adapters.parallel, place, normed, inputs)
            if added is not None:
                label = f"what is added to {name} block {index}"
                results[label] = added
                expected[label] = normed
    return _Outcome(results, expected)


def _features_of_towers(clip: Clip, generator: torch.Generator) -> Features:
    def rows(count: int, width: int) -> Tensor:
        return _differentiable(_sample((count, width), clip.logit_scale, generator))

    return Features(
        text_CE=rows(_NUM_CLASSES, clip.embed_dim),
        image_BE=rows(_NUM_QUERY, clip.embed_dim),
        prompts_BD=rows(_NUM_QUERY, clip.vision.width),
        representation_BE=rows(_NUM_QUERY, clip.embed_dim),
    )


def _call_features(caller: _Caller, method: Method, clip: Clip, generator: torch.Generator) -> _Outcome:
    """Return the text and image features that a function of features returns."""
    leaves = caller.tensors(method.features.initialize, clip, generator)
    given = _features_of_towers(clip, generator)
    features = caller(method.features, _differentiable_each(leaves), given)
    results = {"text_CE": features.text_CE, "image_BE": features.image_BE}
    return _Outcome(results, {"text_CE": given.text_CE, "image_BE": given.image_BE})


def _call_logits(caller: _Caller, method: Method, clip: Clip, generator: torch.Generator) -> _Outcome:
    """Return the loss, and the logits of base and of new classes."""
    logits = method.logits
    leaves = _differentiable_each(caller.tensors(logits.initialize, clip, _NUM_CLASSES, generator))
    features = _features_of_towers(clip, generator)
    scale = clip.logit_scale
    labels_B = torch.zeros(_NUM_QUERY, dtype=torch.long, device=scale.device)
    weights_B = scale.new_full((_NUM_QUERY,), 1 / _NUM_QUERY)
    results = {
        "the loss": caller(logits.loss, leaves, features, labels_B, weights_B, scale),
        "base classes": caller(logits, leaves, features, scale, new_classes=False),
        "new classes": caller(logits, leaves, features, scale, new_classes=True),
    }
    logits_BC = scale.new_zeros(_NUM_QUERY, _NUM_CLASSES)
    return _Outcome(results, {"the loss": scale, "base classes": logits_BC, "new classes": logits_BC})


def _call_regularizer(caller: _Caller, method: Method, clip: Clip, generator: torch.Generator) -> _Outcome:
    """Return a regularizer's distances and terms for random features."""
    image_BE = _sample_features(_NUM_QUERY, clip, generator, prompted=True)
    frozen_image_BE = _sample_features(_NUM_QUERY, clip, generator, prompted=False)
    inputs = RegularizerInputs(
        text_CE=_sample_features(_NUM_CLASSES, clip, generator, prompted=True),
        frozen_text_CE=_sample_features(_NUM_CLASSES, clip, generator, prompted=False),
        image_BE=image_BE,
        frozen_image_BE=frozen_image_BE,
        weights_B=image_BE.new_full((_NUM_QUERY,), 1 / _NUM_QUERY),
        scale=image_BE.new_tensor(100.0),
    )
    results: dict[str, object] = {}
    expected: Tensors = {}
    for term, _ in method.regularizer.terms:
        if isinstance(term, TextDistance | ImageDistance):
            label = f"the distances of {_NUM_QUERY} pairs"
            results[label] = caller(term.distance, image_BE, frozen_image_BE)
            expected[label] = torch.empty(_NUM_QUERY)
        results[term.name] = caller(term, inputs)
        expected[term.name] = torch.empty(())
    return _Outcome(results, expected)


def _call_modulator(caller: _Caller, method: Method, inputs: Tensors, generator: torch.Generator) -> _Outcome:
    """Return the modulated gradients for random gradients of the inputs."""
    gate = caller.tensors(method.modulator.initialize, inputs, generator)
    g_task = _differentiable_each(_sample_each(inputs, generator))
    g_reg = _differentiable_each(_sample_each(inputs, generator))
    return _Outcome(caller.tensors(method.modulator, _differentiable_each(gate), g_task, g_reg), inputs)


def _call_inner(caller: _Caller, method: Method, leaves: Tensors, generator: torch.Generator) -> _Outcome:
    """Return the adapted leaves for random gradients."""
    inner = method.inner
    if inner is None:
        return _Outcome({}, {})
    for attribute in ("lr", "outer_weight", "second_order"):
        getattr(inner, attribute)
    gradient = _differentiable_each(_sample_each(leaves, generator))
    return _Outcome(caller.tensors(inner, _differentiable_each(leaves), gradient), leaves)


def _draw_mix(caller: _Caller, method: Method) -> _Outcome:
    mix = caller(method.augmentation.draw, _NUM_QUERY, _NUM_SUPPORT, np.random.default_rng(0))
    results = {} if mix is None else {"lam": mix.lam, "partner": mix.partner}
    return _Outcome(results, {name: torch.empty(_NUM_QUERY) for name in results})


def _call_averager(caller: _Caller, method: Method, leaves: Tensors, generator: torch.Generator) -> _Outcome:
    """Return the averages after two epochs. If an average is {}, the leaves themselves are evaluated."""
    epochs = 2
    average: Tensors = {}
    results: Tensors = {}
    expected: Tensors = {}
    for epoch in range(epochs):
        average = caller.tensors(method.averager, average, _sample_each(leaves, generator), epoch, epochs)
        if average:
            results |= {f"{name} after epoch {epoch + 1}": each for name, each in average.items()}
            expected |= {f"{name} after epoch {epoch + 1}": leaf for name, leaf in leaves.items()}
    return _Outcome(results, expected)


def _call_optimizer(caller: _Caller, method: Method, leaves: Tensors, generator: torch.Generator) -> _Outcome:
    """Return leaves and slots after two updates.

    Before the second update, the slots are replaced by positive random numbers. Zeros would hide changes in
    place, and the squares of Adam cannot be negative.
    """
    slots: Slots = caller(method.optimizer.initialize, leaves)
    results: dict[str, object] = {}
    expected: Tensors = {}
    for num_updates in range(2):
        gradient = _sample_each(leaves, generator)
        updated, new_slots = caller(
            method.optimizer, leaves, gradient, slots, lr=0.1, num_updates=num_updates
        )
        results |= updated
        expected |= leaves
        for slot in dict.fromkeys([*slots, *new_slots]):
            for name, leaf in leaves.items():
                results[f"{slot} of {name}"] = new_slots.get(slot, {}).get(name)
                expected[f"{slot} of {name}"] = leaf
        slots = {}
        for slot, tensors in new_slots.items():
            sampled = _sample_each(tensors, generator)
            slots[slot] = {name: tensor.abs() for name, tensor in sampled.items()}
    return _Outcome(results, expected)
