"""Equal parts of a function, computed once before it is differentiated."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

PyTree = Any


def merged(fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """`fn`, in which an operation on the same values takes place once.

    XLA merges equal operations of a forward pass, but not what differentiating them
    gives: each has a cotangent of its own. So a soft value and a penalty that both go
    through a sub-network are two backward passes through it, unless it is one before.
    What is not known to be equal stays as it is; so do operations with effects.

    Args:
      fn: a function of arrays, of positional arguments alone.

    Example:
      >>> import jax.numpy as jnp
      >>> twice = lambda x: (jnp.tanh(x), 2.0 * jnp.tanh(x))
      >>> text = lambda f: str(jax.make_jaxpr(f)(1.0))
      >>> text(twice).count("tanh"), text(merged(twice)).count("tanh")
      (2, 1)
    """

    def wrapped(*args):
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
        flat = core.jaxpr_as_fun(_merge(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shape), flat)

    return wrapped


def _merge(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """The same program without operations that an earlier one equals."""
    jaxpr = closed.jaxpr
    first: dict[Any, list] = {}
    known: dict[core.Var, core.Var] = {}

    def resolve(atom):
        return atom if isinstance(atom, core.Literal) else known.get(atom, atom)

    eqns = []
    for eqn in jaxpr.eqns:
        eqn = eqn.replace(invars=[resolve(x) for x in eqn.invars])
        key = _key(eqn)
        if key is not None and key in first:
            known |= dict(zip(eqn.outvars, first[key], strict=True))
            continue
        if key is not None:
            first[key] = eqn.outvars
        eqns.append(eqn)
    outvars = [resolve(x) for x in jaxpr.outvars]
    return core.ClosedJaxpr(jaxpr.replace(eqns=eqns, outvars=outvars), closed.consts)


def _key(eqn: core.JaxprEqn) -> Any:
    """What two operations have in common if they are equal; None if nothing tells."""
    if eqn.effects or any(type(x) is not core.Var for x in eqn.outvars):
        return None

    def name(atom):
        if isinstance(atom, core.Literal):
            return repr(atom.val), atom.aval
        return atom

    key = eqn.primitive, tuple(map(name, eqn.invars)), tuple(sorted(eqn.params.items()))
    try:
        hash(key)
    except TypeError:
        return None
    return key
