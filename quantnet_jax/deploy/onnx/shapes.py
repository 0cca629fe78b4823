"""Primitives that move numbers, as ONNX nodes."""

from typing import Any

import numpy as np
from onnx import helper

from quantnet_jax.deploy.onnx.graph import LARGEST, Row, Value, free, shape_of, to_first

SAME = (
    *("copy", "copy_p", "stop_gradient", "optimization_barrier", "device_put"),
    *("sharding_constraint", "reshard", "pvary", "reduce_precision"),
)
"""Primitives that give what they get."""


def rows() -> dict[str, Row]:
    """{primitive: row} of this file."""
    same = Row(lambda g, args, eqn: list(args), raw=True)
    return {
        **dict.fromkeys(SAME, same),
        "name": Row(_name, layout=True),
        "reshape": Row(_reshape),
        "squeeze": Row(_reshape),
        "expand_dims": Row(_reshape),
        "transpose": Row(
            lambda g, args, eqn: g.permuted(args[0], eqn.params["permutation"])
        ),
        "broadcast_in_dim": Row(_broadcast_in_dim, raw=True),
        "iota": Row(_iota),
        "concatenate": Row(_concatenate, layout=True),
        "pad": Row(_pad, layout=True),
        "rev": Row(_rev),
        "slice": Row(_slice, layout=True),
        "stack": Row(_stack),
        "unstack": Row(_unstack),
        "tile": Row(_tile),
        "split": Row(_split, layout=True),
        "dynamic_slice": Row(_dynamic_slice),
        "dynamic_update_slice": Row(_dynamic_update_slice),
        "scatter": Row(_scatter),
        "scatter-add": Row(_scatter),
        "gather": Row(_gather),
    }


def _name(g, args, eqn):
    """A marked tensor keeps its name; from rank 4 on it is channels-first."""
    x, name = args[0], eqn.params["name"]
    x = g.channels_first(x) if len(x.shape) > 3 else g.channels_last(x)
    if name in {out for node in g.nodes for out in node.output}:
        return x  # in an unrolled loop
    g.nodes.append(helper.make_node("Identity", [g.name_of(x)], [name], name))
    return x._replace(name=name)


def _reshape(g, args, eqn):
    return g.reshaped(args[0], shape_of(eqn))


def _broadcast_in_dim(g, args, eqn):
    x, axes, shape = args[0], eqn.params["broadcast_dimensions"], shape_of(eqn)
    sizes = [1] * len(shape)
    if not isinstance(x, Value):  # repeated where it meets others
        x = np.asarray(x)
        for axis, size in zip(axes, x.shape, strict=True):
            sizes[axis] = size
        x = x.reshape(sizes)
        return x if any(map(free, shape)) else np.broadcast_to(x, shape)
    x = g.channels_last(x)
    for axis, size in zip(axes, x.shape, strict=True):
        sizes[axis] = size
    return g.expanded(g.reshaped(x, sizes), shape)


def _iota(g, args, eqn):
    shape, axis = shape_of(eqn), eqn.params["dimension"]
    sizes = [n if i == axis else 1 for i, n in enumerate(shape)]
    dtype = np.dtype(eqn.params["dtype"])
    if not free(shape[axis]):
        return np.arange(shape[axis], dtype=dtype).reshape(sizes)
    stop = g.add("Squeeze", [g.size(shape[axis])], ())
    zero, one = np.asarray(0, np.int64), np.asarray(1, np.int64)
    x = g.cast(g.add("Range", [zero, stop, one], (shape[axis],)), dtype)
    return g.expanded(g.reshaped(x, sizes), shape)


def _concatenate(g, args, eqn):
    args = [x for x in args if 0 not in x.shape]  # as of `jnp.pad(mode="edge")`
    if len(args) == 1:
        return args[0]
    (args, first), axis = g.alike(args), eqn.params["dimension"]
    axis = to_first(len(shape_of(eqn))).index(axis) if first else axis
    return g.add("Concat", args, shape_of(eqn), first, axis=axis)


def _stack(g, args, eqn):
    axis, shape = eqn.params["axis"], shape_of(eqn)
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    return g.add("Concat", [g.reshaped(x, one) for x in args], shape, axis=axis)


def _unstack(g, args, eqn):
    x, axis = args[0], eqn.params["axis"]
    shape = shape_of(eqn)
    at = lambda i: np.asarray(i, np.int64)
    return [
        g.add("Gather", [x, at(i)], shape, axis=axis) for i in range(len(eqn.outvars))
    ]


def _tile(g, args, eqn):
    return g.add(
        "Tile", [args[0], np.asarray(eqn.params["reps"], np.int64)], shape_of(eqn)
    )


def _pad(g, args, eqn):
    x, value = args
    low, high, inside = np.asarray(eqn.params["padding_config"], np.int64).T
    if inside.any():
        raise ValueError("primitive 'pad' between numbers has no translation to ONNX")
    if x.channels_first:
        order = list(to_first(len(x.shape)))
        low, high = low[order], high[order]
    pads = np.concatenate([low, high])
    return g.add("Pad", [x, pads, value], shape_of(eqn), x.channels_first)


def _cut(g, x, starts, limits, steps, shape):
    """x[starts:limits:steps]; axes that stay whole are left out."""
    order = to_first(len(shape)) if x.channels_first else range(len(shape))
    rows_ = [
        (starts[i], LARGEST if free(limits[i]) else limits[i], axis, steps[i])
        for axis, i in enumerate(order)
        if (starts[i], limits[i], steps[i]) != (0, x.shape[i], 1)
    ]
    if not rows_:
        return x
    parts = np.asarray(rows_, np.int64).T
    return g.add("Slice", [x, *parts], shape, x.channels_first)


def _slice(g, args, eqn):
    p, shape = eqn.params, shape_of(eqn)
    steps = p["strides"] or (1,) * len(shape)
    return _cut(g, args[0], p["start_indices"], p["limit_indices"], steps, shape)


def _split(g, args, eqn):
    x, axis, sizes = args[0], eqn.params["axis"], eqn.params["sizes"]
    found, start = [], 0
    for size, out in zip(sizes, eqn.outvars, strict=True):
        starts, limits = [0] * len(x.shape), list(x.shape)
        starts[axis], limits[axis] = start, start + size
        steps = (1,) * len(x.shape)
        found.append(_cut(g, x, starts, limits, steps, tuple(out.aval.shape)))
        start += size
    return found


def _rev(g, args, eqn):
    axes = np.asarray(eqn.params["dimensions"], np.int64)
    start, step = np.full_like(axes, -1), np.full_like(axes, -1)
    return g.add(
        "Slice",
        [args[0], start, np.full_like(axes, -LARGEST), axes, step],
        shape_of(eqn),
    )


def _dynamic_slice(g, args, eqn):
    x, *starts = args
    shape = shape_of(eqn)
    limits = [n - size for n, size in zip(x.shape, shape, strict=True)]
    axes = [i for i, room in enumerate(limits) if room]
    if not axes:
        return x
    if not any(isinstance(starts[i], Value) for i in axes):
        at = [0] * len(shape)
        for i in axes:
            at[i] = int(np.clip(starts[i], 0, limits[i]))
        ends = [a + size for a, size in zip(at, shape, strict=True)]
        return _cut(g, x, at, ends, (1,) * len(shape), shape)
    parts = [g.reshaped(g.cast(starts[i], np.int64), (1,)) for i in axes]
    start = g.add("Concat", parts, (len(axes),), axis=0)
    start = g.add("Max", [start, np.zeros(len(axes), np.int64)], (len(axes),))
    most = np.asarray([limits[i] for i in axes], np.int64)
    start = g.add("Min", [start, most], (len(axes),))
    sizes = np.asarray([shape[i] for i in axes], np.int64)
    end = g.add("Add", [start, sizes], (len(axes),))
    return g.add("Slice", [x, start, end, np.asarray(axes, np.int64)], shape)


def _dynamic_update_slice(g, args, eqn):
    x, new, *starts = args
    return _placed(g, x, new, starts, eqn)


def _scatter(g, args, eqn):
    """Of one window, such as `x.at[:, i].set(y)`."""
    (x, index, new), d = args, eqn.params["dimension_numbers"]
    if isinstance(index, Value) or index.ndim != 1 or d.operand_batching_dims:
        _refuse_placing(eqn)
    starts: list[Any] = [0] * len(x.shape)
    sizes, rest = [], iter(new.shape)
    for axis, start in zip(d.scatter_dims_to_operand_dims, index, strict=True):
        starts[axis] = start
    for axis in range(len(x.shape)):
        sizes.append(1 if axis in d.inserted_window_dims else next(rest))
    inside = all(
        0 <= start <= n - m for start, n, m in zip(starts, x.shape, sizes, strict=True)
    )
    if not inside and "CLIP" not in str(eqn.params["mode"]):
        return x  # dropped
    return _placed(g, x, g.reshaped(new, sizes), starts, eqn)


def _placed(g, x, new, starts, eqn):
    """x with `new` at `starts` in the place of its numbers, or added to them."""
    room = [n - m for n, m in zip(x.shape, new.shape, strict=True)]
    if any(n and isinstance(s, Value) for s, n in zip(starts, room, strict=True)):
        _refuse_placing(eqn)
    low = [int(np.clip(s, 0, n)) if n else 0 for s, n in zip(starts, room, strict=True)]
    high = [n - a for a, n in zip(low, room, strict=True)]
    dtype, pads = eqn.outvars[0].aval.dtype, np.asarray(low + high, np.int64)
    if any(room):
        new = g.add("Pad", [new, pads, np.zeros((), dtype)], x.shape)
    if eqn.primitive.name == "scatter-add":
        return g.add("Add", [x, new], x.shape)
    pairs = list(zip(low, high, strict=True))
    sizes = [n - r if r else 1 for n, r in zip(x.shape, room, strict=True)]
    mask = np.pad(np.ones(sizes, bool), pairs)
    return g.add("Where", [mask, new, x], x.shape) if any(room) else new


def _refuse_placing(eqn):
    raise ValueError(
        f"primitive {eqn.primitive.name!r} at several places, or at one that depends "
        "on the input, has no translation to ONNX"
    )


def _gather(g, args, eqn):
    (x, index), p, shape = args, eqn.params, shape_of(eqn)
    d, sizes = p["dimension_numbers"], p["slice_sizes"]
    mapped, each = tuple(d.start_index_map), tuple(d.operand_batching_dims)
    of_index = tuple(d.start_indices_batching_dims)
    gone = (*d.collapsed_slice_dims, *each)
    whole = all(
        size == (1 if i in gone else n)
        for i, (size, n) in enumerate(zip(sizes, x.shape, strict=True))
    )
    if not whole or sorted(mapped) != sorted(d.collapsed_slice_dims):
        raise ValueError(
            "primitive 'gather' of parts of axes has no translation to ONNX"
        )
    index = g.cast(index, np.int64)
    if "CLIP" in str(p["mode"]):
        most = np.asarray([x.shape[i] - 1 for i in mapped], np.int64)
        index = g.elementwise("Max", [index, np.zeros_like(most)], index.shape)
        index = g.elementwise("Min", [index, most], index.shape)
    rest = [i for i in range(len(x.shape)) if i not in gone]
    others = [i for i in range(len(index.shape) - 1) if i not in of_index]
    if len(mapped) == 1 and not each:
        (axis,) = mapped
        ids = g.reshaped(index, index.shape[:-1])
        found_shape = (*x.shape[:axis], *ids.shape, *x.shape[axis + 1 :])
        found = g.add("Gather", [x, ids], found_shape, axis=axis)
        origins = [("x", i) for i in rest if i < axis]
        origins += [("index", i) for i in others]
        origins += [("x", i) for i in rest if i > axis]
    else:
        x = g.permuted(x, (*each, *mapped, *rest))
        index = g.permuted(index, (*of_index, *others, len(index.shape) - 1))
        found_shape = (*index.shape[:-1], *x.shape[len(each) + len(mapped) :])
        found = g.add("GatherND", [x, index], found_shape, batch_dims=len(each))
        origins = [("index", i) for i in (*of_index, *others)]
        origins += [("x", i) for i in rest]
    at_x = iter(rest)
    at_index = iter(range(len(index.shape) - 1))
    wanted = [
        ("x", next(at_x)) if t in d.offset_dims else ("index", next(at_index))
        for t in range(len(shape))
    ]
    return g.permuted(found, [origins.index(origin) for origin in wanted])
