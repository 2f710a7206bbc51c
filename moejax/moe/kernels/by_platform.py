"""One function with a form of its own for some platforms, chosen when a program is lowered."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir


def by_platform(name: str, shapes: Callable, default: Callable, **forms: Callable) -> Callable:
    """``forms[p]`` in programs for platform p (``tpu``, ``cuda``), ``default`` in all others.

    All forms take the same trees of arrays, and the same hashable keywords, and give a tree of
    arrays like that of ``shapes``, which gives their shapes and types. They have no gradient: put
    a ``jax.custom_vjp`` around. Only the form that is asked for is ever traced, whereas
    ``jax.lax.platform_dependent`` traces and differentiates them all.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True

    def flat(form: Callable, *leaves: Any, tree: Any, static: tuple) -> list:
        return jax.tree.leaves(form(*jax.tree.unflatten(tree, leaves), **dict(static)))

    @primitive.def_abstract_eval
    def _(*leaves: Any, **params: Any) -> list:
        made = flat(shapes, *leaves, **params)
        return [jax.core.ShapedArray(leaf.shape, leaf.dtype) for leaf in made]

    @cache
    def compiled(**params: Any) -> Callable:
        return jax.jit(partial(primitive.bind, **params))

    @primitive.def_impl
    def _(*leaves: Any, **params: Any) -> list:
        with jax.disable_jit(False):
            return compiled(**params)(*leaves)

    batching.primitive_batchers[primitive] = partial(_one_after_another, primitive)
    mlir.register_lowering(primitive, mlir.lower_fun(partial(flat, default)))
    for platform, form in forms.items():
        mlir.register_lowering(primitive, mlir.lower_fun(partial(flat, form)), platform=platform)

    def call(*args: Any, **static: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        made = primitive.bind(*leaves, tree=tree, static=tuple(sorted(static.items())))
        return jax.tree.unflatten(jax.tree.structure(shapes(*args, **static)), made)

    return call


def _one_after_another(primitive: Primitive, leaves: Any, axes: Any, **params: Any) -> tuple:
    """Under ``jax.vmap``: a loop."""
    batched = [jnp.moveaxis(x, a, 0) for x, a in zip(leaves, axes, strict=True) if a is not None]

    def one(batched: list) -> list:
        rest = iter(batched)
        each = [x if a is None else next(rest) for x, a in zip(leaves, axes, strict=True)]
        return primitive.bind(*each, **params)

    made = jax.lax.map(one, batched)
    return made, [0] * len(made)
