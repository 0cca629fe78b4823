"""2,000 damaged and hostile artifacts: each is refused in one line, or does no harm."""

import copy
import dataclasses
import json
import resource
import struct
import time
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from artifacts import SPEC, make_params
from safetensors.numpy import load as load_bytes
from safetensors.numpy import save

from quantnet_jax import deploy
from quantnet_jax.deploy.format import artifact
from quantnet_jax.deploy.format.artifact import digest
from quantnet_jax.deploy.format.packed import DEEPEST, Words, is_packed

CORRUPTIONS = 2000


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """(bytes of a good artifact, its text, its tensors)."""
    path = tmp_path_factory.mktemp("good") / "model.safetensors"
    deploy.save(path, make_params(), SPEC)
    data = path.read_bytes()
    return data, metadata_of(data)["quantnet_jax"], load_bytes(data)


def metadata_of(data):
    return json.loads(data[8 : 8 + header_size(data)])["__metadata__"]


def header_size(data):
    return struct.unpack("<Q", data[:8])[0]


def seal(text, tensors):
    """A file with this text and these tensors, whose hash is right."""
    return save(tensors, {"quantnet_jax": text, "sha256": digest(text, tensors)})


def raw(header, body=b"", length=None):
    """A file with any header at all: a text, bytes, or what becomes JSON."""
    if not isinstance(header, bytes | str):
        header = json.dumps(header)
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def attempt(data, path):
    """The `Predictor` of a file, or the message of its refusal, checked to be one."""
    path.write_bytes(data)
    try:
        return deploy.load(path)
    except ValueError as e:
        message = str(e)
    assert message.startswith(str(path)) and message.isprintable(), message
    assert len(message) < len(str(path)) + 1000
    assert len(message) > len(str(path)) + 10
    return message


def contents(predictor):
    """Tensors of a predictor, comparable bit for bit."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(predictor.params)
    return {
        jax.tree_util.keystr(k): (x.dtype, x.tobytes()) for k, x in as_numpy(leaves)
    }


def as_numpy(leaves):
    return [(key, np.asarray(x)) for key, x in leaves]


# Damage that the hash sees ------------------------------------------------------------


def flip(rng, data, start, stop):
    data = bytearray(data)
    for position in rng.integers(start, stop, rng.integers(1, 9)):
        data[position] ^= 1 << rng.integers(8)
    return bytes(data)


def damage(rng, data):
    """One random corruption that leaves the hash as it is."""
    end = 8 + header_size(data)
    kind = rng.integers(9)
    if kind == 0:
        return flip(rng, data, 0, len(data))
    if kind == 1:
        return flip(rng, data, 0, end)
    if kind == 2:
        return flip(rng, data, end, len(data))
    if kind == 3:
        return data[: rng.integers(len(data))]
    if kind == 4:
        return data + rng.bytes(rng.integers(1, 100))
    if kind == 5:  # a piece overwritten, as a lost block of a disk
        start, size = rng.integers(len(data)), rng.integers(1, 200)
        piece = data[start : start + size]
        new = rng.bytes(len(piece)) if rng.integers(2) else bytes(len(piece))
        return data[:start] + new + data[start + size :]
    if kind == 6:  # a piece missing
        start, size = rng.integers(len(data)), rng.integers(1, 64)
        return data[:start] + data[start + size :]
    if kind == 7:
        return struct.pack("<Q", rng.integers(0, 2 * len(data))) + data[8:]
    header = json.loads(data[8:end])
    return raw(swapped(rng, header), data[end:])


def swapped(rng, header):
    """The header with the places of two tensors of equal size exchanged."""
    names = [name for name in header if name != "__metadata__"]
    size = lambda name: np.diff(header[name]["data_offsets"])[0]
    pairs = [(a, b) for a in names for b in names if a < b and size(a) == size(b)]
    a, b = pairs[rng.integers(len(pairs))]
    header[a]["data_offsets"], header[b]["data_offsets"] = (
        header[b]["data_offsets"],
        header[a]["data_offsets"],
    )
    return header


# Content whose hash is right ----------------------------------------------------------

DEEP = "[" * 5000 + "]" * 5000
VALUES = [
    None, True, False, 0, -1, 1, 3, 9, 2**31, 10**9, 2**63, 10**400, 1.5, 1e308, -0.0,
    float("nan"), float("inf"), "", "x", "small", "resnet8", "two\nlines", "\x1b[31mx",
    "\ud800", [], [[]], [0], [1e-300], [0.5, 0.5], [10**9] * 3, [1] * 9, {},
    {"name": 1}, {"name": "x"}, {"name": "dorefa", "bits": 10**9},
    {"bits": 1, "shape": [1]},
    {"schedule": "linear", "start": 1, "end": 2, "until": 1}, "DEEP",
]  # fmt: skip


def places(node, path=()):
    """Paths to every value of nested plain data."""
    keys = node if isinstance(node, dict) else range(len(node))
    for key in keys:
        yield (*path, key)
        if isinstance(node[key], dict | list):
            yield from places(node[key], (*path, key))


def hostile_text(rng, text):
    """The text with one value replaced, or gone, or one more."""
    spec = json.loads(text)
    paths = list(places(spec))
    *folders, last = paths[rng.integers(len(paths))]
    node = spec
    for key in folders:
        node = node[key]
    choice = rng.integers(len(VALUES) + 2)
    if choice == len(VALUES):
        del node[last]
    elif choice == len(VALUES) + 1 and isinstance(node, dict):
        new = ("folded", "act_quant", "blocks", "axis_name", "x", "act")[
            rng.integers(6)
        ]
        node[new] = VALUES[rng.integers(len(VALUES))]
    else:
        node[last] = copy.copy(VALUES[choice % len(VALUES)])
    return json.dumps(spec).replace('"DEEP"', DEEP)


def hostile_tensors(rng, tensors):
    """The tensors with one changed, gone, renamed or added."""
    tensors = dict(tensors)
    names = sorted(tensors)
    name = names[rng.integers(len(names))]
    x, kind = tensors[name], rng.integers(9)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = np.full_like(x, 255 if x.dtype == np.uint8 else np.nan)
    elif kind == 2:
        tensors[name] = x.astype((np.float64, np.int32, np.float16)[rng.integers(3)])
    elif kind == 3:
        tensors[name] = x.reshape(-1)[: rng.integers(max(1, x.size))]
    elif kind == 4:
        tensors[name] = x.reshape((1,) * rng.integers(1, 30) + x.shape)
    elif kind == 5:
        tensors[name] = np.zeros((0, *x.shape), x.dtype)
    elif kind == 6:
        strange = (name + "x", "", "/", f"{name}/a", name.split("/")[0], "a\nb", "a:b")
        tensors[strange[rng.integers(7)]] = tensors.pop(name)
    elif kind == 7:
        tensors["/".join("a" * rng.integers(1, 3000))] = x
    else:
        tensors[name] = np.asarray(x.reshape(-1)[0])
    return tensors


def sound(predictor):
    """Whether a file that was accepted is as good as one that we write: a network that
    runs, finite numbers, codes inside their tables."""
    for leaf in jax.tree.leaves(predictor.params, is_leaf=is_packed):
        if not is_packed(leaf):
            assert np.isfinite(leaf).all()
            continue
        if isinstance(leaf, Words):
            assert leaf.words.dtype == jnp.uint32 and np.isfinite(leaf.scale).all()
            continue
        bits = np.unpackbits(np.asarray(leaf.codes), bitorder="little")
        bits = bits[: np.prod(leaf.shape) * leaf.bits].reshape(-1, leaf.bits)
        assert (bits @ 2 ** np.arange(leaf.bits)).max() < leaf.levels.shape[-1]
        assert np.isfinite(leaf.levels).all() and np.isfinite(leaf.scale).all()
    images = jax.ShapeDtypeStruct((2, *predictor.spec.shape), jnp.uint8)
    outputs = jax.eval_shape(predictor.apply, predictor.params, images)
    return outputs.shape == (2, predictor.spec.outputs) and outputs.dtype == jnp.float32


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """As `good`, of a network of signs, whose layers count bits."""
    path = tmp_path_factory.mktemp("counting") / "model.safetensors"
    params = {k: v for k, v in make_params().items() if "input" not in k}
    spec = dataclasses.replace(SPEC, activation={"name": "sign_ste"}, popcount=True)
    deploy.save(path, params, spec)
    data = path.read_bytes()
    leaves = jax.tree.leaves(deploy.load(path).params, is_leaf=is_packed)
    assert any(isinstance(x, Words) for x in leaves)
    return data, metadata_of(data)["quantnet_jax"], load_bytes(data)


@pytest.mark.parametrize("network", ["good", "counting"])
def test_every_corruption_is_refused_or_harmless(network, request, tmp_path):
    data, text, tensors = request.getfixturevalue(network)
    path = tmp_path / "model.safetensors"
    original = attempt(data, path)
    same, rng = contents(original), np.random.default_rng(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused, slowest = 0, 0.0
    for number in range(CORRUPTIONS):
        kind, began = number % 10, time.process_time()
        if kind == 8:
            bad = seal(hostile_text(rng, text), tensors)
        elif kind == 9:
            bad = seal(text, hostile_tensors(rng, tensors))
        else:
            bad = damage(rng, data)
        found = attempt(bad, path)
        slowest = max(slowest, time.process_time() - began)
        if isinstance(found, str):
            refused += 1
        elif kind < 8:
            assert contents(found) == same and found.spec == original.spec, number
        else:  # by its hash it is another file: then a file like ours
            assert sound(found), number
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before  # in KiB
    assert refused > 0.9 * CORRUPTIONS
    assert slowest < 5.0 and grown < 200_000


# One file for each trick --------------------------------------------------------------

SMALL = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
HEADERS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "no header": struct.pack("<Q", 0),
    "length of all memory": raw("{}", length=2**64 - 1),
    "length of a gigabyte": raw("{}", length=2**30),
    "length beyond the file": raw("{}", length=3),
    "no JSON": raw("{]"),
    "no UTF-8": raw(b'{"\xff\xfe": 1}'),
    "a list": raw([1, 2]),
    "deeply nested": raw("[" * 100_000),
    "deeply nested entry": raw('{"a": ' + "[" * 10_000 + "]" * 10_000 + "}"),
    "negative offsets": raw({"a": SMALL | {"data_offsets": [-4, 0]}}, bytes(4)),
    "offsets the wrong way": raw({"a": SMALL | {"data_offsets": [4, 0]}}, bytes(4)),
    "offsets beyond the file": raw({"a": SMALL | {"data_offsets": [0, 2**62]}}),
    "overlapping": raw({"a": SMALL, "b": SMALL}, bytes(4)),
    "a hole": raw({"a": SMALL | {"data_offsets": [4, 8]}}, bytes(8)),
    "a name twice": raw(
        f'{{"a": {json.dumps(SMALL)}, "a": {json.dumps(SMALL)}}}', bytes(4)
    ),
    "huge shape": raw({"a": SMALL | {"shape": [2**40, 2**40]}}, bytes(4)),
    "shape that overflows to 4": raw({"a": SMALL | {"shape": [2**32, 2**32]}}, b""),
    "huge empty shape": raw(
        {"a": {"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}}
    ),
    "shape of words": raw({"a": SMALL | {"shape": ["1"]}}, bytes(4)),
    "unknown dtype": raw({"a": SMALL | {"dtype": "F31"}}, bytes(4)),
    "8-bit floats": raw({"a": SMALL | {"dtype": "F8_E4M3", "shape": [4]}}, bytes(4)),
    "bfloat16": raw({"a": SMALL | {"dtype": "BF16", "shape": [2]}}, bytes(4)),
    "metadata of numbers": raw({"__metadata__": {"quantnet_jax": 1}}),
    "no metadata": raw({"a": SMALL}, bytes(4)),
    "no hash": raw({"__metadata__": {"quantnet_jax": "{}"}}),
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.",
}


@pytest.mark.parametrize("name", HEADERS)
def test_hostile_header(name, tmp_path):
    tracemalloc.start()
    found = attempt(HEADERS[name], tmp_path / "model.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, str) and peak < 20e6
    assert not (tmp_path / "pwned").exists()


def change(text, *path, to):
    spec = node = json.loads(text)
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = to
    return json.dumps(spec)


KERNEL = ("quantized", "conv1/kernel")
TEXTS = {
    "a wide network": (("model", "width"), 10**9),
    "an endless width": (("model", "width"), 10**400),
    "a true width": (("model", "width"), True),
    "unknown network": (("model", "name"), "os.system"),
    "network without a name": (("model",), {"width": 4}),
    "network as a list": (("model",), [["name", "small"]]),
    "an option of another network": (("model", "stem_pool"), True),
    "blocks of one's own": (("model", "blocks"), [10**6]),
    "dtype of integers": (("dtype",), "int32"),
    "stride that is a word": (("model", "stem_strides"), "2"),
    "an act that is no name": (("model", "act"), ["relu"]),
    "an axis": (("model", "axis_name"), "batch"),
    "unknown activation": (("activation", "name"), "x"),
    "activation of a module": (("activation", "name"), "this:f(bits=2)"),
    "activation of many bits": (("activation", "bits"), 10**9),
    "activation of true bits": (("activation", "bits"), True),
    "activation of a schedule": (
        ("activation", "start"),
        {"schedule": "linear", "start": 1, "end": 2, "until": 1},
    ),
    "activation as a list": (("activation",), []),
    "images of a terabyte": (("shape",), [10**6, 10**6, 1]),
    "images of no size": (("shape",), [8, 0, 1]),
    "images of true size": (("shape",), [8, 8, True]),
    "images of half a pixel": (("shape",), [8.5, 8, 1]),
    "mean that is no number": (("mean",), [float("nan")]),
    "mean that is none in float32": (("mean",), [1e300]),
    "std that is 0 in float32": (("std",), [1e-60]),
    "negative std": (("std",), [-1.0]),
    "std of two channels": (("std",), [1.0, 1.0]),
    "no shape of images": (("shape",), None),
    "one output less": (("outputs",), 2),
    "endless outputs": (("outputs",), 10**400),
    "true outputs": (("outputs",), True),
    "info as a list": (("info",), ["coat"]),
    "origin as a word": (("origin",), "here"),
    "task as a number": (("task",), 1),
    "dtype as a list": (("dtype",), ["float32"]),
    "popcount as a word": (("popcount",), "yes"),
    "an unknown key": (("bread",), 1),
    "no bits": ((*KERNEL, "bits"), 0),
    "nine bits": ((*KERNEL, "bits"), 9),
    "other bits": ((*KERNEL, "bits"), 2),
    "true bits": ((*KERNEL, "bits"), True),
    "a huge shape": ((*KERNEL, "shape"), [10**9, 10**9, 4, 4]),
    "an endless shape": ((*KERNEL, "shape"), [10**400]),
    "a shape of floats": ((*KERNEL, "shape"), [3.0, 3.0, 4.0, 4.0]),
    "another shape of that size": ((*KERNEL, "shape"), [9, 4, 4]),
    "no shape": ((*KERNEL, "shape"), []),
    "an unknown tensor": (("quantized", "x/kernel"), {"bits": 1, "shape": [1]}),
    "a tensor that is a word": (KERNEL, "x"),
    "nothing quantized": (("quantized",), {}),
    "quantized as a list": (("quantized",), ["conv1/kernel"]),
    "an earlier format": (("format",), 1),
    "a later format": (("format",), 3),
    "unknown floats": (("float",), "float64"),
    "the other floats": (("float",), "float16"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_hostile_text_with_the_right_hash(name, good, tmp_path):
    _, text, tensors = good
    path, value = TEXTS[name]
    bad = seal(change(text, *path, to=value), tensors)
    tracemalloc.start()
    found = attempt(bad, tmp_path / "model.safetensors")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(found, str) and peak < 20e6, found


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{", DEEP, '{"a":' * 50_000, "1" * 5000, '{"format": 2}', "NaN"],
    ids=lambda text: text[:15],
)
def test_hostile_json_with_the_right_hash(text, good, tmp_path):
    found = attempt(seal(text, good[2]), tmp_path / "model.safetensors")
    assert isinstance(found, str)


@pytest.mark.parametrize(
    "name, make",
    [
        ("conv1/kernel:levels", lambda x: np.array([np.nan, 1], np.float32)),
        ("conv1/kernel:levels", lambda x: np.array([np.inf, 1], np.float32)),
        ("conv1/kernel:levels", lambda x: np.float32([[-1, 1]] * 3)),
        ("conv1/kernel:levels", lambda x: np.zeros((2, 2, 2), np.float32)),
        ("conv1/kernel:levels", lambda x: np.asarray(1.0, np.float32)),
        ("conv1/kernel:levels", lambda x: np.zeros(0, np.float32)),
        ("conv1/kernel:scale", lambda x: np.full_like(x, np.inf)),
        ("conv1/kernel:scale", lambda x: x.reshape(-1)),
        ("conv1/kernel:scale", lambda x: x.astype(np.float16)),
        ("conv1/kernel:codes", lambda x: x[:-1]),
        ("conv1/kernel:codes", lambda x: x.reshape(1, -1)),
        ("conv1/kernel:codes", lambda x: x.astype(np.int8)),
        ("conv2/kernel:codes", lambda x: np.full_like(x, 255)),  # code 3 of 3 levels
        ("head/bias", lambda x: np.full_like(x, np.nan)),
        ("head/bias", lambda x: x.astype(np.float64)),
        ("head/bias", lambda x: np.zeros((3, 0, 10**12), np.float32)),
        ("head/bias/a", lambda x: np.zeros(3, np.float32)),
        ("head", lambda x: np.zeros(3, np.float32)),
        ("/".join("a" * (DEEPEST + 1)), lambda x: np.zeros(3, np.float32)),
        ("/".join("a" * 100_000), lambda x: np.zeros(3, np.float32)),
    ],
    ids=lambda x: x[:20] if isinstance(x, str) else "",
)
def test_hostile_tensor_with_the_right_hash(name, make, good, tmp_path):
    _, text, tensors = good
    bad = seal(text, tensors | {name: make(tensors.get(name))})
    assert isinstance(attempt(bad, tmp_path / "model.safetensors"), str)


def test_number_of_tensors_is_bounded(good, tmp_path, monkeypatch):
    _, text, tensors = good
    monkeypatch.setattr(artifact, "MOST", len(tensors))
    path = tmp_path / "model.safetensors"
    assert not isinstance(attempt(seal(text, tensors), path), str)
    more = tensors | {"more": np.zeros(1, np.float32)}
    assert "tensors, expected at most" in attempt(seal(text, more), path)


def test_what_must_load_does(good, tmp_path):
    # The refusals above would prove nothing if `seal` made no good files.
    data, text, tensors = good
    predictor = attempt(seal(text, tensors), tmp_path / "model.safetensors")
    assert sound(predictor) and predictor.spec == SPEC
    kinds = [is_packed(x) for x in jax.tree.leaves(predictor.params, is_leaf=is_packed)]
    assert sum(kinds) == 2
    bits = {k: v["bits"] for k, v in json.loads(text)["quantized"].items()}
    assert bits == {"conv1/kernel": 1, "conv2/kernel": 2}


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="not found"):
        deploy.load(tmp_path / "no")
    with pytest.raises(ValueError, match="is a folder, expected a file"):
        deploy.load(tmp_path)
