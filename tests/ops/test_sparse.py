"""Sparse convolutions against masked dense ones; networks, search, voxels, a study."""

import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config
from util import normal

from configs import omniglot_sparse
from quantnet_jax import activations, data, evaluate, models
from quantnet_jax import run as train
from quantnet_jax.checkpoint import manager
from quantnet_jax.data.sets import voxels
from quantnet_jax.models.sparse import check_capacity
from quantnet_jax.ops import shifted, sparse
from quantnet_jax.tasks import layer_inputs
from quantnet_jax.training import experiment, resume
from quantnet_jax.trees.paths import flatten


def grids(dims, side=6, channels=3, seed=0, share=0.3):
    """float32 (2, side, ..., channels), most sites of which are 0."""
    rng = np.random.default_rng(seed)
    x = normal(seed, (2, *(side,) * dims, channels))
    return x * (rng.uniform(size=(2, *(side,) * dims, 1)) < share)


def dense(x, kernel, strides=1, moved=None):
    """Masked dense convolution in float64, by sums of slices of a padded grid.

    Args:
      x: (N, side, ..., Cin).
      kernel: (size, ..., Cin, Cout), of an odd size.
      moved: the shift of the whole kernel.
    """
    dims = x.ndim - 2
    size, reach = kernel.shape[0], kernel.shape[0] + 2
    moved = moved or (0,) * dims
    mask = (x != 0).any(-1)
    padded = np.pad(x.astype(np.float64), [(0, 0), *[(reach, reach)] * dims, (0, 0)])
    cells = [-(-n // strides) for n in x.shape[1:-1]]
    y = np.zeros((len(x), *cells, kernel.shape[-1]))
    for j in np.ndindex(*(size,) * dims):
        first = [reach + a - size // 2 + b for a, b in zip(j, moved, strict=True)]
        part = tuple(
            slice(f, f + n, strides) for f, n in zip(first, x.shape[1:-1], strict=True)
        )
        y += padded[(slice(None), *part)] @ kernel[j].astype(np.float64)
    out = np.zeros((len(x), *cells), bool)
    for n, *at in np.argwhere(mask):
        out[(n, *(a // strides for a in at))] = True
    return y * out[..., None]


def sites_and_map(x, reach, strides=1, capacity=0):
    sites = sparse.from_dense(jnp.asarray(x), capacity)
    size = x.shape[1:-1]
    out = sites if strides == 1 else sparse.coarser(sites, size, strides)
    maps = sparse.gather_map(sites, out, size, reach, strides)
    cells = tuple(-(-n // strides) for n in size)
    return sites, out, maps, cells


# Lists --------------------------------------------------------------------------------
@pytest.mark.parametrize("dims", [2, 3])
def test_a_list_is_the_grid(dims):
    x = grids(dims)
    sites = sparse.from_dense(jnp.asarray(x))
    np.testing.assert_array_equal(sparse.to_dense(sites, x.shape[1:-1]), x)
    mask = (x != 0).any(-1)
    assert sites.count.tolist() == mask.reshape(2, -1).sum(1).tolist()
    for n in range(2):
        wanted = np.argwhere(mask[n])  # in row-major order
        np.testing.assert_array_equal(sites.coordinates[n][: len(wanted)], wanted)
    fewer = sparse.from_dense(jnp.asarray(x), 3)
    assert fewer.features.shape == (2, 3, 3) and fewer.count.tolist() == [3, 3]
    np.testing.assert_array_equal(fewer.features, sites.features[:, :3])
    none = sparse.from_dense(jnp.zeros((1, *x.shape[1:])))
    assert none.count.tolist() == [0] and not np.asarray(none.features).any()


# Convolutions -------------------------------------------------------------------------
@pytest.mark.parametrize(("dims", "strides"), [(2, 1), (2, 2), (3, 1), (3, 2)])
@pytest.mark.parametrize("side", [6, 5])
def test_equals_the_masked_dense_convolution(dims, strides, side):
    x, kernel = grids(dims, side), normal(1, (3,) * dims + (3, 4))
    _, out, maps, cells = found = sites_and_map(x, sparse.offsets(3, dims), strides)
    y = sparse.convolve(found[0].features, maps, kernel.reshape(-1, 3, 4))
    y = sparse.to_dense(out._replace(features=y), cells)
    np.testing.assert_allclose(y, dense(x, kernel, strides), atol=1e-5)


def test_equals_the_convolution_of_xla():
    x, kernel = grids(2, 9), normal(1, (3, 3, 3, 4))
    sites, _, maps, cells = sites_and_map(x, sparse.offsets(3, 2))
    y = sparse.convolve(sites.features, maps, kernel.reshape(9, 3, 4))
    wanted = jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )  # fmt: skip
    mask = (x != 0).any(-1, keepdims=True)
    y = sparse.to_dense(sites._replace(features=y), cells)
    np.testing.assert_allclose(y, np.asarray(wanted) * mask, atol=1e-5)


@pytest.mark.parametrize(("strides", "groups"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_derivatives_are_those_of_the_plain_form(strides, groups):
    """That with a gather of its own against that which JAX derives by scattering."""
    x, kernel = grids(2), normal(1, (9, 3, 4))
    reach = sparse.offsets(3 if groups == 1 else 5, 2)
    sites, _, maps, _ = sites_and_map(x, reach, strides)
    choice = None if groups == 1 else shifted.shifted(3, 2)[np.asarray([1, 8])]
    g = normal(2, (*maps.forward.shape[:2], 4))

    def own(x, w):
        return jnp.sum(sparse.convolve(x, maps, w, choice) * g)

    def plain(x, w):
        met, total = sparse.gather(x, maps), 0.0
        rows = np.arange(9)[None] if choice is None else choice
        for i, row in enumerate(rows):
            part = slice(4 // groups * i, 4 // groups * (i + 1))
            y = jnp.einsum("nmjc,jcd->nmd", met[:, :, row], w[..., part])
            total += jnp.sum(y * g[..., part])
        return total

    found = [jax.jit(jax.grad(f, (0, 1)))(sites.features, kernel) for f in (own, plain)]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
        assert np.abs(a).max() > 0.1


@pytest.mark.parametrize("dims", [2, 3])
def test_shifted_groups(dims):
    x, kernel = grids(dims), normal(1, (3,) * dims + (3, 4))
    sites, _, maps, cells = sites_and_map(x, sparse.offsets(5, dims))
    flat, where = kernel.reshape(-1, 3, 4), shifted.shifted(3, dims)
    moves = sparse.offsets(3, dims)
    choice = np.asarray([len(moves) // 2, 1], np.int32)  # none, and (..., -1, 0)
    assert not moves[choice[0]].any()
    y = sparse.convolve(sites.features, maps, flat, jnp.asarray(where[choice]))
    y = sparse.to_dense(sites._replace(features=y), cells)
    wanted = [
        dense(x, kernel[..., 2 * g : 2 * g + 2], moved=tuple(moves[choice[g]]))
        for g in range(2)
    ]
    np.testing.assert_allclose(y, np.concatenate(wanted, -1), atol=1e-5)
    # The supernet: the weighted sum over all shifts.
    share = np.random.default_rng(0).dirichlet(np.ones(len(moves)), 2)
    share = share.astype(np.float32)
    mixed = shifted.supernet(sites.features, maps, flat, jnp.asarray(share), where)
    each = [
        sum(
            share[g, o] * dense(x, kernel[..., 2 * g : 2 * g + 2], moved=tuple(move))
            for o, move in enumerate(moves)
        )
        for g in range(2)
    ]
    mixed = sparse.to_dense(sites._replace(features=mixed), cells)
    np.testing.assert_allclose(mixed, np.concatenate(each, -1), atol=1e-5)


def test_binary_products_are_exact_and_inactive_sites_stay_zero():
    x = np.sign(grids(2, 8, share=0.4))
    kernel = np.sign(normal(1, (3, 3, 3, 4)))
    sites, _, maps, cells = sites_and_map(x, sparse.offsets(3, 2), capacity=40)
    full = sites.features + jnp.where(sites.active, 0.0, 7.0)  # padding is not read
    y = sparse.convolve(full, maps, kernel.reshape(9, 3, 4))
    y = np.asarray(sparse.to_dense(sites._replace(features=y), cells))
    np.testing.assert_array_equal(y, dense(x, kernel))
    assert (y[~(x != 0).any(-1)] == 0).all() and np.abs(y).max() > 2


# Networks -----------------------------------------------------------------------------
def made(name="sparse2d", **options):
    given = {"outputs": 3, "width": 4, "depth": 1, "groups": 2}
    signs = {"act": "rprelu", "act_quant": activations.create("rsign")}
    return models.create(name, **given | signs | options)


@pytest.mark.parametrize(("name", "channels"), [("sparse2d", 1), ("sparse3d", 8)])
def test_capacity_and_padding_do_not_matter(name, channels):
    """Enough sites give what all pixels give, in training too."""
    x = (np.random.default_rng(0).uniform(size=(4, 8, 8, channels)) < 0.15) * 1.0
    x = jnp.asarray(x, jnp.float32)
    most = 4 * int((x != 0).sum((1, 2, 3)).max())  # a fourth is left at the end
    outputs = []
    for capacity in (0, most):
        model = made(name, capacity=capacity)
        variables = jax.jit(model.init)(jax.random.key(0), x)
        apply = jax.jit(
            lambda v, x, m=model: m.apply(v, x, True, mutable=["batch_stats"])
        )
        outputs.append(apply(variables, x))
    for other in outputs[1:]:
        for a, b in zip(*map(jax.tree.leaves, (outputs[0], other)), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_search_ships_the_likeliest_offsets():
    """Outside of training a supernet is the network with fixed offsets."""
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 8, 8, 1)) < 0.3)
    x = x.astype(jnp.float32)
    fixed, search = made(shift="fixed"), made(shift="search")
    variables = jax.jit(fixed.init)(jax.random.key(0), x)
    run = lambda model, training: jax.jit(
        lambda v: model.apply(v | training, x, True, mutable=["batch_stats"])[0]
    )(variables)
    ships = run(search, {})
    np.testing.assert_array_equal(ships, run(fixed, {}))
    training = {"training": {"step": jnp.int32(0)}}
    assert np.abs(ships - run(search, training)).max() > 1e-3


def test_bad_options_are_one_line():
    for options, words in (
        ({"shift": "left"}, "shift='left'"),
        ({"groups": 3}, "groups=3, expected a divisor of width=4"),
    ):
        with pytest.raises(ValueError, match=words):
            made(**options)


def test_output_error_against_numpy():
    x, z = grids(2, 8), np.sign(grids(2, 8))
    sites, _, maps, _ = sites_and_map(x, sparse.offsets(3, 2))
    coarse = sites._replace(features=sparse.from_dense(jnp.asarray(z)).features)
    w = normal(1, (3, 3, 3, 4))
    layer = layer_inputs.SiteInput(
        coarse.features, sites.features, lambda x, w: sparse.convolve(x, maps, w)
    )
    flat = w.reshape(9, 3, 4)
    got = layer_inputs.output_error(layer, flat, jnp.sign(flat))
    a, b = dense(x, w).reshape(-1, 4), dense(z, np.sign(w)).reshape(-1, 4)
    wanted = [
        min(np.sum((a[:, c] - s * b[:, c]) ** 2) for s in np.linspace(0, 3, 3001))
        / np.sum(a[:, c] ** 2)
        for c in range(4)
    ]
    assert float(got) == pytest.approx(np.mean(wanted), abs=1e-4)
    assert float(
        layer_inputs.output_error(layer._replace(x=layer.real), flat, flat)
    ) == (pytest.approx(0, abs=1e-5))


# The training program -----------------------------------------------------------------
def config(**overrides):
    given = {
        "data__name": "synthetic",
        "data__pad": 0,
        "model__name": "sparse2d",
        "model__width": 4,
        "model__depth": 1,
        "model__groups": 2,
        "model__act": "rprelu",
        "activation__name": "rsign",
        "quantizer__name": "binary_ste",
    }
    return tiny_config(**given | overrides)


def test_search_then_fixed_through_the_training_program(tmp_path):
    found = config(model__shift="search", export=True, weights__optimizer="adam")
    omniglot_sparse.search(found)
    result = train.train(found, tmp_path / "search")
    assert result["packed"] == result["exported"] == result["hard"]
    _, state, _ = evaluate.restore(str(tmp_path / "search"))
    shifts = {k: v for k, v in flatten(state.params["model"]).items() if "shift" in k}
    assert len(shifts) == 3 and all(np.abs(x).max() > 0 for x in shifts.values())

    again = config(
        model__shift="fixed",
        init_from=str(tmp_path / "search"),
        init_pattern="params/model/.*/shift",
    )
    exp = experiment.build(again)
    with manager.Checkpoints(tmp_path / "fixed") as none:
        taken = resume.start(exp, none, lambda step: False)
    assert set(taken.warm["matched"]) == {f"params/model/{path}" for path in shifts}
    now = flatten(taken.state.params["model"])
    for path, x in shifts.items():
        np.testing.assert_array_equal(now[path], x)
    start = flatten(exp.state.params["model"])
    np.testing.assert_array_equal(now["stem/kernel"], start["stem/kernel"])


# Data ---------------------------------------------------------------------------------
def test_voxels_by_hand():
    points = np.asarray([[[-1, -1, -1], [0.99, 0.1, -0.1], [2.0, -0.6, 0.0]]])
    grid = voxels.voxelize(points, 4)
    assert np.argwhere(grid[0]).tolist() == [[0, 0, 0], [3, 0, 2], [3, 2, 1]]
    assert set(np.unique(grid)) == {0, 255}
    for wrong in (points[0], points * np.nan):
        with pytest.raises(ValueError, match=r"expected finite \[N, P, 3\]"):
            voxels.voxelize(wrong)


def test_generated_shapes():
    found = voxels.shapes(16, 8)
    again = voxels.shapes(16, 8)
    np.testing.assert_array_equal(found.train_image, again.train_image)
    assert np.bincount(found.train_label).tolist() == [2] * 8
    # A sphere is a surface: all of its voxels are about as far from the middle.
    sphere = found.test_image[list(found.test_label).index(0)]
    at = np.argwhere(sphere) - (voxels.SIDE - 1) / 2
    spread = np.linalg.eigvalsh(np.cov(at.T))
    assert 100 < len(at) < 500 and spread.min() > 5
    disc = found.test_image[list(found.test_label).index(7)]
    spread = np.linalg.eigvalsh(np.cov(np.argwhere(disc).T))
    assert spread[0] < 1.5 < 5 < spread[1]


def test_modelnet_file(tmp_path, shared_data):
    found = data.load("modelnet40", shared_data / "modelnet40-subset")
    assert np.bincount(found.train_label).tolist() == [626, 106]
    assert np.bincount(found.test_label).tolist() == [100, 50]
    count = (found.train_image > 0).reshape(732, -1).sum(1)
    assert count.max() <= 512 and count.mean() > 200
    (tmp_path / voxels.FILE).write_bytes(b"nothing")
    with pytest.raises(ValueError, match=f"{voxels.FILE}.*expected arrays"):
        data.load("modelnet40", tmp_path)
    with pytest.raises(FileNotFoundError, match="expected the point clouds"):
        data.load("modelnet40", tmp_path / "none")


def clouds(**changes):
    """The arrays of a small file; those that are changed are as a function gives."""
    found = {
        "xyz_int16": np.ones((4, 5, 3), np.int16),
        "label": np.array([0, 1, 0, 1]),
        "is_test": np.array([False, False, True, True]),
    }
    return found | {key: change(found[key]) for key, change in changes.items()}


@pytest.mark.parametrize(
    "says, changes",
    [
        ("label 2 at position 3", {"label": lambda x: x + (np.arange(4) == 3)}),
        (r"int64\[4, 1\]", {"label": lambda x: x[:, None]}),
        (r"complex128\[4\]", {"label": lambda x: 1j * x}),
        (r"bool\[\], expected", {"is_test": lambda x: np.array(True)}),
        ("train_image is .* non-empty", {"is_test": np.ones_like}),
        (r"int16\[4, 0, 3\]", {"xyz_int16": lambda x: x[:, :0]}),
        ("complex64", {"xyz_int16": lambda x: x.astype(np.complex64)}),
        ("datetime64", {"xyz_int16": lambda x: x.astype("M8[s]")}),
        ("expected arrays", {"xyz_int16": lambda x: np.zeros(x.shape, "i2,i2")}),
        ("allow_pickle", {"xyz_int16": lambda x: x.astype(object)}),
        ("more than 33554432", {"xyz_int16": lambda x: np.ones((1, 2**23, 3), "i2")}),
        (r"8193, 1, 3\]", {"xyz_int16": lambda x: np.ones((8193, 1, 3), np.int16)}),
    ],
)
def test_arrays_that_are_no_clouds(says, changes, tmp_path):
    np.savez_compressed(tmp_path / voxels.FILE, **clouds(**changes))
    with pytest.raises(ValueError, match=says) as error:
        data.load("modelnet40", tmp_path)
    assert str(error.value).isprintable()
    assert "non-empty" in says or voxels.FILE in str(error.value)


def npy(header, size=0):
    return b"\x93NUMPY\1\0\x76\0" + header.ljust(117) + b"\n" + bytes(size)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        npy(b"{'descr': '<i2', 'shape': (((("),
        npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (2**50, 512, 3), }"),
        npy(b"{'descr': '<i2', 'fortran_order': False, 'shape': (%d, 3), }" % 2**50),
    ],
    ids=["empty", "short", "text", "power", "large"],
)
def test_damaged_files_of_clouds(content, tmp_path):
    path = tmp_path / voxels.FILE
    for whole in (True, False):
        if whole:
            path.write_bytes(content)
        else:
            with zipfile.ZipFile(path, "w") as file:
                for key in voxels.KEYS:
                    file.writestr(f"{key}.npy", content)
        with pytest.raises(ValueError, match="expected arrays") as error:
            data.load("modelnet40", tmp_path)
        assert str(error.value).isprintable() and str(path) in str(error.value)


def test_drawers_are_held_out(shared_data):
    found = data.load("omniglot_drawers", shared_data / "omniglot")
    assert len(found.classes) == 242
    assert set(np.bincount(found.train_label)) == {15}
    assert set(np.bincount(found.test_label)) == {5}


SETS = {
    "": ("omniglot_drawers", "omniglot"),
    "voxels": ("modelnet40", "modelnet40-subset"),
}


@pytest.mark.parametrize("variant", SETS)
def test_lists_hold_all_sites(variant, shared_data):
    name, folder = SETS[variant]
    model = omniglot_sparse.get_config(variant).model
    sets = [data.load(name, shared_data / folder)]
    sets += [data.load("shapes")] * (variant == "voxels")
    for found in sets:
        images = np.concatenate([found.train_image, found.test_image])
        options = {"capacity": model.capacity}
        mean = data.STATISTICS[found.name][0]
        models.check_images(model.name, options, images, mean)
        assert models.check_images(model.name, {}, images, mean) is None
        with pytest.raises(ValueError, match="capacity=100 holds 100 sites in stage 1"):
            models.check_images(model.name, {"capacity": 100}, images, mean)
        with pytest.raises(ValueError, match="an image has .* active ones"):
            models.check_images(model.name, options, images[:1], (0.1,))


@pytest.mark.parametrize("dims", [2, 3])
def test_capacity_counts_the_sites_of_each_stage(dims):
    """Of cells by the dense reference: maxima over 2 and 4 sites a side."""
    mask = np.random.default_rng(0).random((6, *(7,) * dims)) < 0.2
    images = mask[..., None] if dims == 2 else mask
    images = images.astype(np.uint8)
    most = []
    for stage in range(3):
        side = 2**stage
        wide = np.pad(mask, [(0, 0), *[(0, -7 % side)] * dims])
        for axis in range(dims):
            cells = wide.shape[axis + 1] // side
            wide = np.moveaxis(wide, axis + 1, -1)
            wide = wide.reshape(*wide.shape[:-1], cells, side).any(-1)
            wide = np.moveaxis(wide, -1, axis + 1)
        most.append(int(wide.reshape(6, -1).sum(1).max()) << stage)
    check_capacity(images, dims, max(most))
    with pytest.raises(ValueError, match=f"expected at least {max(most)}"):
        check_capacity(images, dims, max(most) - 1)
