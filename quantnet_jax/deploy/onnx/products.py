"""Convolutions, matrix products and pooling as ONNX nodes."""

import math
from collections.abc import Sequence

import numpy as np

from quantnet_jax.deploy.onnx.graph import Row, Value, shape_of, to_first


def rows() -> dict[str, Row]:
    """{primitive: row} of this file."""
    return {
        "conv_general_dilated": Row(_conv, layout=True),
        "dot_general": Row(_dot_general),
        "reduce_window_max": Row(_pool("max"), layout=True),
        "reduce_window_min": Row(_pool("min"), layout=True),
        "reduce_window_sum": Row(_pool("sum"), layout=True),
    }


def _dot_general(g, args, eqn):
    (contracted, batched), shape = eqn.params["dimension_numbers"], shape_of(eqn)
    a, b = args
    (a_sum, b_sum), (a_each, b_each) = contracted, batched
    free = lambda x, *taken: [i for i in range(len(x.shape)) if i not in sum(taken, ())]
    a_free = free(a, tuple(a_sum), tuple(a_each))
    b_free = free(b, tuple(b_sum), tuple(b_each))
    a = g.permuted(a, (*a_each, *a_free, *a_sum))
    b = g.permuted(b, (*b_each, *b_sum, *b_free))
    each, rows_ = a.shape[: len(a_each)], a.shape[len(a_each) :][: len(a_free)]
    columns = b.shape[len(b.shape) - len(b_free) :]
    depth = math.prod(a.shape[len(a_each) + len(a_free) :])
    if each or len(columns) != 1:
        a = g.reshaped(a, (*each, math.prod(rows_), depth))
        b = g.reshaped(b, (*each, depth, math.prod(columns)))
        out = g.add("MatMul", [a, b], (*each, math.prod(rows_), math.prod(columns)))
        return g.reshaped(out, shape)
    a, b = g.reshaped(a, (*rows_, depth)), g.reshaped(b, (depth, *columns))
    return g.add("MatMul", [a, b], shape)


def _conv(g, args, eqn):
    p, (image, kernel) = eqn.params, args
    numbers, shape = p["dimension_numbers"], shape_of(eqn)
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    rank = len(shape)
    if not 3 <= rank <= 5 or p["batch_group_count"] != 1:
        raise ValueError(
            "a convolution is not one of 1 to 3 axes, or groups its examples: it has "
            "no translation to ONNX"
        )
    if tuple(lhs) == to_first(rank):
        image = g.channels_first(image)
    else:
        image = g.permuted(g.channels_last(image), lhs)._replace(channels_first=True)
    kernel = g.permuted(g.channels_last(kernel), rhs)  # O, I, ...
    attributes = {"dilations": p["rhs_dilation"], "group": p["feature_group_count"]}
    # The shape as JAX would see it, channels-last.
    plain = (shape[out[0]], *(shape[i] for i in out[2:]), shape[out[1]])
    if {*p["lhs_dilation"]} == {1}:
        _not_negative(p["padding"])
        found = g.add(
            "Conv",
            [image, kernel],
            plain,
            True,
            kernel_shape=kernel.shape[2:],
            strides=p["window_strides"],
            pads=pads_of(p["padding"]),
            **attributes,
        )
    else:
        found = _transposed(g, image, kernel, p, plain, attributes)
    if tuple(out) == to_first(rank):
        return found
    found = Value(found.name, tuple(shape[i] for i in out))
    return g.permuted(found, np.argsort(out))


def _transposed(g, image, kernel, p, plain, attributes):
    """A convolution of an image with zeros between its pixels."""
    if isinstance(kernel, Value) or {*p["window_strides"]} != {1}:
        raise ValueError(
            "a transposed convolution has a stride, or a kernel that depends on the "
            "input: it has no translation to ONNX"
        )
    group, (outs, ins, *window) = p["feature_group_count"], kernel.shape
    # ONNX: (I, O / group, ...), each axis of the window reversed.
    kernel = np.reshape(kernel, (group, outs // group, ins, *window))
    kernel = np.swapaxes(kernel, 1, 2).reshape(group * ins, outs // group, *window)
    kernel = np.flip(kernel, tuple(range(2, kernel.ndim)))
    reach = [(k - 1) * d for k, d in zip(window, p["rhs_dilation"], strict=True)]
    pairs = [
        (r - low, r - high) for r, (low, high) in zip(reach, p["padding"], strict=True)
    ]
    found = g.add(
        "ConvTranspose",
        [image, kernel],
        plain,
        True,
        kernel_shape=window,
        strides=p["lhs_dilation"],
        pads=pads_of([tuple(max(0, x) for x in pair) for pair in pairs]),
        **attributes,
    )
    more = [[max(0, -x) for x in pair] for pair in pairs]
    if not np.any(more):
        return found
    # Beyond the reach of every pixel the result is 0.
    both = np.asarray([[0, 0], [0, 0], *more], np.int64).T.reshape(-1)
    return g.add("Pad", [found, both, np.float32(0)], plain, True)


def _pool(kind: str):
    def run(g, args, eqn):
        p, x, shape = eqn.params, args[0], shape_of(eqn)
        window, strides, padding = (
            tuple(p[k]) for k in ("window_dimensions", "window_strides", "padding")
        )
        dilation, rank = tuple(p["window_dilation"]), len(shape)
        still = (1, 1, (0, 0))
        moving = [
            i for i in range(rank) if (window[i], strides[i], padding[i]) != still
        ]
        limited = kind == "sum" and {*dilation} != {1}
        if limited or {*p["base_dilation"]} != {1} or len(moving) > 3:
            raise ValueError(
                "a pooling is dilated, or over more than three axes: it has no "
                "translation to ONNX"
            )
        _not_negative(padding)
        inside = list(range(1, rank - 1))
        if 3 <= rank <= 5 and {*moving} <= {*inside}:
            moving = inside
            return _window(g, kind, g.channels_first(x), eqn, moving, shape)
        moving = moving or [rank - 1]
        others = [i for i in range(rank) if i not in moving]
        x = g.permuted(g.channels_last(x), (*others, *moving))
        count = math.prod(x.shape[: len(others)])
        x = g.reshaped(x, (count, 1, *x.shape[len(others) :]))
        sizes = tuple(shape[i] for i in moving)
        x = x._replace(channels_first=True)
        x = _window(g, kind, x, eqn, moving, (count, *sizes, 1))
        x = Value(x.name, (count, 1, *sizes))
        x = g.reshaped(x, (*(shape[i] for i in others), *sizes))
        return g.permuted(x, np.argsort((*others, *moving)))

    return run


def _window(g, kind, x, eqn, axes, shape):
    pick = lambda name: [eqn.params[name][i] for i in axes]
    sizes = pick("window_dimensions")
    more = {
        "kernel_shape": sizes,
        "strides": pick("window_strides"),
        "pads": pads_of(pick("padding")),
    }
    if kind == "sum":
        mean = g.add("AveragePool", [x], shape, True, count_include_pad=1, **more)
        return g.add("Mul", [mean, np.float32(math.prod(sizes))], shape, True)
    more["dilations"] = pick("window_dilation")
    if kind == "max":
        return g.add("MaxPool", [x], shape, True, **more)
    x = g.add("Neg", [x], x.shape, True)
    return g.add("Neg", [g.add("MaxPool", [x], shape, True, **more)], shape, True)


def pads_of(pairs: Sequence[Sequence[int]]) -> list[int]:
    """((top, bottom), (left, right)) -> [top, left, bottom, right]."""
    return [int(pair[i]) for i in (0, 1) for pair in pairs]


def _not_negative(padding) -> None:
    if any(x < 0 for pair in padding for x in pair):
        raise ValueError(
            f"a window has the padding {padding}, expected none below 0: it has no "
            "translation to ONNX"
        )
