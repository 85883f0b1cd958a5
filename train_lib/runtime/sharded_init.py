"""Models that are too large for one device, created in pieces.

`create` runs the code that builds a model one operation at a time, as Python would, and lays
each weight out on the mesh as soon as it exists: no device ever holds more than its share and the
one array that is being made. The operations are the same, so the weights are bit for bit those
of the model built on one device.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from flax import nnx
from jax.extend.core import ClosedJaxpr, Literal, Var, jaxpr_as_fun

from train_lib.runtime.sharding import Layout, make_layout, place
from train_lib.runtime.trees import path_name

# A value that is used within so many operations stays whole; the others are split meanwhile.
_SOON = 8
_Module = TypeVar('_Module', bound=nnx.Module)


def create(build: Callable[[], _Module], layout: Layout) -> _Module:
    """build(), with its variables laid out."""
    if not layout.splits:
        return build()
    definition: list[nnx.GraphDef] = []

    def arrays():
        graphdef, state = nnx.split(build())
        definition.append(graphdef)
        return nnx.to_pure_dict(state)

    program, shapes = jax.make_jaxpr(arrays, return_shape=True)()
    shardings = jax.tree_util.tree_map_with_path(
        lambda path, leaf: layout.of(path_name(path), leaf.shape), shapes)
    values = _evaluate(program, jax.tree.leaves(shardings), layout)
    return nnx.merge(definition[0], jax.tree.unflatten(jax.tree.structure(shapes), values))


def _evaluate(program: ClosedJaxpr, shardings: list, layout: Layout) -> list[jax.Array]:
    """The results of a program without arguments, each laid out as soon as it is computed."""
    jaxpr = program.jaxpr
    values = dict(zip(jaxpr.constvars, program.consts))
    # Intermediate values have no name that the user's rules could match.
    intermediate = make_layout(dict(rules='auto', min_size=layout.min_size), layout.mesh)
    # The results are used after the last operation.
    last = {var: i for i, eqn in enumerate(jaxpr.eqns) for var in eqn.invars
            if isinstance(var, Var)}
    last |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if isinstance(var, Var)}
    final = {var: sharding for var, sharding in zip(jaxpr.outvars, shardings)
             if isinstance(var, Var)}

    for i, eqn in enumerate(jaxpr.eqns):
        given = list(dict.fromkeys(var for var in eqn.invars if isinstance(var, Var)))
        made = [var for var in eqn.outvars if var in last]
        one = jaxpr.replace(constvars=[], invars=given, outvars=made, eqns=[eqn])
        results = jaxpr_as_fun(ClosedJaxpr(one, []))(*(values[var] for var in given))
        for var, value in zip(made, results):
            if var in final:
                value = place(value, final[var])
            elif last[var] - i > _SOON and value.dtype == np.float32:
                value = place(value, intermediate.of('kernel', value.shape))
            values[var] = value
        for var in given:
            if last[var] == i:
                del values[var]
    return [place(var.val if isinstance(var, Literal) else values[var], sharding)
            for var, sharding in zip(jaxpr.outvars, shardings)]
