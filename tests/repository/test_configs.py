"""Every file under configs/ builds, keeps to the known keys, and takes a step."""

import functools
import importlib
import pathlib
import sys

import chex
import jax
import jax.numpy as jnp
import pytest
from tiny import train
from util import make_step

from quantnet_jax import config as config_lib
from quantnet_jax import data, models, quantizers
from quantnet_jax.distributed import runners
from quantnet_jax.evaluation.scoring import make_apply
from quantnet_jax.tasks import Source, classification, terms
from quantnet_jax.training import distillation, experiment, optim, parts
from quantnet_jax.training.estimators import gradients
from quantnet_jax.training.state import create_state
from quantnet_jax.trees import tree

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(
    path.stem for path in (ROOT / "configs").glob("*.py") if path.stem != "__init__"
)


def get(name, variant=""):
    return importlib.import_module(f"configs.{name}").get_config(variant)


@pytest.mark.parametrize("name", NAMES)
def test_full_variant_is_valid(name):
    config = get(name)
    config_lib.check(config)
    total = 1000
    for method in quantizers.names():
        # The options of every method are options of its factory, schedules included.
        config.quantizer.name = method
        assert parts.make_rules(config, total)
    for section in ("weights", "meta"):
        rate = parts.make_rate(section, config[section], total)
        parts.make_optimizer(section, config[section], rate)
    assert parts.make_model(config, {"outputs": 10}, None).outputs == 10
    assert config.model.name in models.names()


# The networks of other files again; to compile each takes seconds.
AGAIN = ("cifar100_resnet110", "cifar100_resnet20_bits", "cifar100_small")


@pytest.mark.parametrize("name", [x for x in NAMES if x not in AGAIN])
def test_small_variant_takes_a_step(name):
    config = get(name, "runlocal")
    config_lib.check(config)
    exp = experiment.build(config, jax.devices()[:1])
    before = jax.device_get(exp.state.params)
    state, metrics = train(exp, 1)
    chex.assert_tree_all_finite(metrics)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
    # The very first step of a warm-up has rate 0.
    assert any(jax.tree.leaves(moved)) == (config.weights.warmup == 0)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_variant(name):
    with pytest.raises(ValueError, match="unknown variant 'bread'"):
        get(name, "bread")


@pytest.mark.parametrize("name", NAMES)
def test_header_is_honest(name):
    text = (ROOT / "configs" / f"{name}.py").read_text(encoding="utf-8")
    assert "Command:" in text
    if name not in ("default",):
        assert "Hardware:" in text and "Expected:" in text
    if name.startswith("cifar"):
        assert "Wall time:" in text and "soft, hard, float:" in text


def test_methods_do_not_share_their_schedules():
    config = get("smoke")
    config.quantizer.quantnet.sharpness.end = 7.0
    assert config.quantizer.tanh_sign.sharpness.end == 20.0
    assert get("smoke").quantizer.quantnet.sharpness.end == 20.0


def test_conventions_of_the_literature():
    assert get("cifar10_resnet20").layers == get("cifar100_resnet20").layers == "inner"
    assert get("cifar100_resnet56").layers == "all"
    pretraining, binary = get("cifar100_resnet56", "float"), get("cifar100_resnet56")
    config_lib.check(pretraining)
    assert pretraining.quantizer.name == "identity" and not pretraining.init_from
    assert pretraining.model == binary.model and pretraining.data == binary.data
    assert "_float" in binary.init_from
    deeper = get("cifar100_resnet110", "float")
    assert deeper.model.name == "resnet110"
    assert get("cifar100_resnet110").init_from == "runs/cifar100_resnet110_float"
    small = (get(f"cifar100_resnet{n}", "runlocal").to_dict() for n in (56, 110))
    assert next(small) == next(small)
    assert get("cifar100_resnet20_bits", "3").quantizer.quantnet.bits == 3
    mixed = parts.make_rules(get("cifar100_resnet20_bits", "mixed"), 9)
    assert [repr(r.quantizer).split(", ")[0] for r in mixed] == [
        "quantnet(bits=2",
        "lsq(bits=8)",
    ]
    warm, first = (get("cifar100_resnet20", x) for x in ("warm", "float"))
    assert warm.epochs + first.epochs == get("cifar100_resnet20").epochs
    assert first.quantizer.name == "identity" and "_float" in warm.init_from
    whole = get("cifar100_small", "full")
    assert (whole.model.stem_strides, get("cifar100_small").model.stem_strides) == (
        1,
        2,
    )
    for config in (deeper, warm, first, whole, *(get(x, "runlocal") for x in AGAIN)):
        config_lib.check(config)


IMAGENET = {"imagenet_resnet18": 11_689_512, "imagenet_resnet34": 21_797_672}


@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_variants_differ_in_the_method_alone(name):
    quantnet = get(name)
    methods = {"float": "identity", "ste": "dorefa"}
    for variant, method in methods.items():
        config, local = get(name, variant), get(name, f"{variant},runlocal")
        for c in (config, local):
            config_lib.check(c)
            assert (
                c.quantizer.name == method
                and c.ema_decay
                and c.task.classification.label_smoothing == 0.1
            )
        assert local.data.name == "synthetic" and config.data == quantnet.data
        config.quantizer.name = "quantnet"
        config.weights.weight_decay = quantnet.weights.weight_decay
        assert config == quantnet
    for variant in ("float,ste", "runlocal,ste", "ste,bread"):
        with pytest.raises(ValueError, match="unknown variant"):
            get(name, variant)


@pytest.mark.parametrize(
    ("name", "variant", "microbatches"),
    [
        ("imagenet_resnet18", "", 4),
        ("imagenet_resnet18", "float", 1),
        ("imagenet_resnet18", "ste", 2),
        ("imagenet_resnet34", "", 1),
        ("imagenet_resnet34", "float", 2),
        ("imagenet_resnet34", "ste", 1),
    ],
)
def test_imagenet_step_at_full_shape(name, variant, microbatches):
    """224 pixels, 1000 classes, batch 256, a teacher: shapes, with nothing computed."""
    config = get(name, variant)
    model = parts.make_model(config, {"outputs": 1000}, None)
    size = config.data.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    rules = parts.make_rules(config, 1000)
    quantizer = tree.tree_quantizer(rules, variables["params"])
    rate = parts.make_rate("weights", config.weights, 1000)
    tx = optim.partition(
        parts.make_optimizer("weights", config.weights, rate),
        parts.make_optimizer("meta", config.meta, rate),
    )
    create = lambda v, key: create_state(v, quantizer, tx, key, averaged=True)
    state = jax.eval_shape(create, variables, jax.random.key(1))
    mean, std = data.STATISTICS["imagenet2012"]
    prepare = functools.partial(
        data.prepare, pad=0, flip=True, dtype=jnp.bfloat16, mean=mean, std=std
    )
    task = classification(
        Source(prepare, (size, size, 3), mean, std, {"classes": ["x"] * 1000}),
        label_smoothing=0.1,
    )

    def estimator(loss, prepare):
        outputs = lambda v, x: model.apply(v, x, train=False)
        prepare = distillation.with_teacher(prepare, outputs)
        accumulate = functools.partial(gradients.accumulate, parts=microbatches)
        return gradients.joint(loss, prepare, accumulate)

    step = make_step(
        *(make_apply(model, runners.make_runner()), quantizer, tx, task, estimator),
        terms=terms.weighted([(0.5, terms.distillation())]),
        decay=config.ema_decay,
    )
    rows = {"image": ((size, size, 3), jnp.uint8), "label": ((), jnp.int32)}
    rows |= {"position": ((), jnp.uint32), "mask": ((), jnp.float32)}
    batch = {
        k: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        for k, (shape, dtype) in rows.items()
    }
    given = {"set": None, "teacher": variables}
    run = functools.partial(step, axis_name=None)
    new, metrics = jax.eval_shape(run, state, given, batch)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    kinds = {(x.shape, x.dtype) for x in metrics.values()}
    assert kinds == {((), jnp.dtype("float32"))}
    sizes = [x.size for x in jax.tree.leaves(new.ema["params"]["model"])]
    assert sum(sizes) == IMAGENET[name] and config.batch_size == 256


def test_streamed_set_trains_and_evaluates(tiny):
    config = get("imagenet_resnet18")
    config.data.name, config.data.folder = "tfds:tiny_jpegs", str(tiny[0])
    config.data.image_size, config.data.workers = 16, 0
    config.batch_size, config.eval_batch_size = 4, 8
    config.model.name = "small"
    config.model.width = 4
    del config.model.zero_init_last
    config.weights.warmup = 0.0
    config.recalibration_batches = 1
    exp = experiment.build(config, jax.devices()[:2])
    assert exp.feed.info == {"classes": ["a", "b", "c"]} and exp.train_data is None
    assert exp.steps == round(100 * 11 / 4)
    state, metrics = train(exp, 2)
    chex.assert_tree_all_finite(metrics)
    scores, layers, _ = exp.evaluate(state)
    assert scores["examples"] == 7  # each once, in a padded batch of 8
    assert scores["soft"] in [k / 7 for k in range(8)]
    assert layers and "tensorflow" not in sys.modules
    # The same step again, out of order: a batch is a function of its step.
    again = next(exp.train_batches(1))
    direct = exp.train_batches(0)
    next(direct)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(next(direct)), strict=True):
        assert (a == b).all()


def test_streamed_set_that_is_not_there(tmp_path):
    config = get("imagenet_resnet18")
    config.data.name, config.data.folder = "tfds:no_such_set", str(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match="no_such_set") as error:
        experiment.build(config, jax.devices()[:1])
    assert "\n" not in str(error.value)
    config.data.classes = 3
    with pytest.raises(ValueError, match="streamed whole"):
        experiment.build(config, jax.devices()[:1])


def test_made_up_images_come_in_the_wanted_size():
    config = get("cifar10_resnet20", "runlocal")
    config.model.name = "resnet8"
    config.data.image_size, config.data.classes = 12, 3
    config.data.train_size, config.data.test_size = 70, 20
    exp = experiment.build(config, jax.devices()[:1])
    assert exp.feed.shape == (12, 12, 3) and len(exp.feed.info["classes"]) == 3
    assert (exp.feed.train_size, exp.feed.test_size) == (70, 20)
