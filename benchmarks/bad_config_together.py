"""Bad configurations whose values are fine one by one: combinations, data, devices."""

from typing import Any, NamedTuple

DEVICES = 4
"""That the program and the tests run on; some cases do not fit this number."""
TRAIN, TEST, SIZE = 100, 50, 8
"""The data of `bad_configs.START`."""
LAYERS = ("conv1", "conv2")
"""Its quantized layers; it has stem, stem_bn, bn1, bn2 and head too."""


class Case(NamedTuple):
    """A bad configuration.

    Attributes:
      description: in a few words.
      keys: one of them must be in the message, as a user would type it.
      changes: (dotted key, value), applied in this order.
      removed: dotted keys.
      words: of the command line, in place of the others.
      category: see `bad_config_cases.CATEGORIES`.
    """

    description: str
    keys: tuple[str, ...]
    changes: tuple[tuple[str, Any], ...] = ()
    removed: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    category: str = ""


def pick(rng, *values):
    return rng.choice(values)


def name(rng) -> str:
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9)))


def wrong(description: str, keys: str, **changes) -> Case:
    """`wrong("...", "a.b c", a__b=1)`: '__' for the dot, keys with spaces between."""
    pairs = tuple((key.replace("__", "."), value) for key, value in changes.items())
    return Case(description, tuple(keys.split()), pairs)


def broken_pattern(rng) -> str:
    tail = pick(rng, "(", "[", "*" * 2, "(?P<", "(?<=.*)", "a{2,1}", ")", "\\", "+*")
    return f"{name(rng)}/{tail}" if tail != "*" * 2 else f"*{name(rng)}"


def rules(rng) -> Any:
    """Rows that are none, or whose words are wrong."""
    row = ("head/kernel", "binary_ste", "layer")
    how = rng.randrange(8)
    bad = [
        row[: rng.randint(0, 2)],
        (*row, *[name(rng)] * rng.randint(1, 3)),
        (broken_pattern(rng), *row[1:]),
        (row[0], name(rng), row[2]),
        (*row[:2], name(rng)),
        tuple(pick(rng, 1, None, 2.5, (), True) if i == how % 3 else x
              for i, x in enumerate(row)),
        pick(rng, name(rng), None, rng.randint(0, 9), {"pattern": name(rng)}),
        (row[0], pick(rng, "", "lsq ", "LSQ", "pakt", "identity_"), row[2]),
    ]  # fmt: skip
    return pick(rng, (bad[how],), [bad[how]], (row, bad[how]))


def layers(rng) -> Case:
    rule = (pick(rng, "head/kernel", "head/.*nel"), "binary_ste", "layer")
    twice = rng.choice(LAYERS) + "/kernel"
    claims = pick(rng, "bn1/scale", ".*bias", ".*", ".*scale", "stem_bn/.*", "head/.*")
    place = f"stage{rng.randint(1, 99)}_{name(rng)}"
    return pick(
        rng,
        wrong("layers that match nothing", "layers", layers=f"{place}/kernel"),
        wrong("layers of another case", "layers", layers=f"{twice.upper()}|{place}"),
        wrong("part of a path", "layers", layers=f"{twice[:-1]}|{place}"),
        wrong("broken layers", "layers", layers=broken_pattern(rng)),
        wrong("no pattern", "layers", layers=pick(rng, "", " ", "inner ", "Inner")),
        wrong("more than kernels", "layers", layers=f"{claims}|{place}"),
        wrong("rule without a match", "rules", rules=((place, *rule[1:]),)),
        wrong("rule twice", "rules", rules=(rule, rule)),
        wrong("claimed twice", "rules", rules=((twice, rng.choice(
            ("binary_ste", "lsq", "twn", "irnet")), "layer"),)),
        wrong("rule of all", "rules", rules=((f"{claims}|{place}", "tanh_sign",
            "layer"),)),
        wrong("malformed rules", "rules", rules=rules(rng)),
        wrong("shared by other shapes", "share layers", layers="all", share="model",
            seed=rng.randrange(10**6)),
    )  # fmt: skip


def keys(rng) -> Case:
    """Two keys that do not go together."""
    seed = rng.randrange(10**6)
    section = pick(rng, "weights", "meta")
    signed = pick(rng, "sign_ste", "approx_sign")
    stream = pick(rng, "imagenet2012", f"tfds:{name(rng)}")
    cut = pick(rng, "train_size", "test_size", "classes", "validation_size")
    loop = pick(rng, "workers", "max_unreadable")
    whole = {"data.train_size": 0, "data.test_size": 0}
    late = rng.uniform(0.3, 0.9)
    net = pick(rng, "resnet8", "resnet20", "resnet32")
    return pick(
        rng,
        wrong("fsdp with pmap", "fsdp", fsdp=rng.randint(2, 64)),
        wrong("relu before a sign", "model.act", model__act="relu",
            activation__name=signed, seed=seed),
        Case("a part of a stream", (f"data.{cut}",), (("data.name", stream),
            *whole.items(), (f"data.{cut}", rng.randint(2, 999)))),
        wrong("workers without a stream", f"data.{loop}",
            **{f"data__{loop}": rng.randint(1, 999)}),
        wrong("folder of a made-up set", "data.folder", data__folder=name(rng),
            data__name=pick(rng, "synthetic", "bundled")),
        wrong("no name of a stream", "data.name", data__name=pick(rng, "tfds:",
            "tfds: "), data__train_size=0, data__test_size=0, seed=seed),
        wrong("milestone in the warm-up", f"{section}.milestones",
            **{f"{section}__schedule": "steps", f"{section}__warmup": late,
               f"{section}__milestones": (late * rng.uniform(0.1, 0.9), 0.95)}),
        wrong("steps without milestones", f"{section}.milestones", seed=seed,
            **{f"{section}__schedule": "steps", f"{section}__milestones": ()}),
        wrong("tau that falls", "quantizer.recu.lowest quantizer.recu.highest",
            quantizer__recu={"lowest": late, "highest": late / 2} if late > 0.5 else
            {"lowest": 0.9 + late / 20, "highest": 0.9}),
        wrong("wide convolution", "quantizer.quantnet.width", quantizer__quantnet={
            "unit": "conv", "width": rng.randint(17, 999)}),
        wrong("bi_real of bottlenecks", "model.bi_real", model={"name": "resnet50",
            "bi_real": True, "width": rng.randint(1, 99)}),
        wrong("microbatches", "accumulation_steps", batch_size=4 * rng.randint(2, 20),
            accumulation_steps=pick(rng, 3 * 7 * 11 * 13, 4 * 23 * 29, 8 * 101)),
        wrong("option of another network", "model.shortcut", model={"name": "small",
            "shortcut": "A", "width": rng.randint(1, 99)}),
        wrong("activation that is one of weights", "activation.name",
            activation__name=pick(rng, "quantnet", "binary_ste", "xnor", "twn"),
            seed=seed),
        wrong("weights by an activation's name", "quantizer.name", seed=seed,
            quantizer__name=pick(rng, "sign_ste", "act", "relu")),
        wrong("network by its depth", "model.name", seed=seed,
            model__name=net.replace("resnet", pick(rng, "ResNet", "resnet-", "res"))),
    )  # fmt: skip


def data(rng) -> Case:
    """What the set does not hold."""
    many = rng.randint(1, 10 ** rng.randint(1, 6))
    bundled = {"data__name": "bundled", "data__train_size": 0, "data__test_size": 0}
    folder = f"{name(rng)}/{name(rng)}"
    no_folder = pick(rng, (name(rng) * 90)[:270], f"{folder}\0", f"~no_one/{folder}")
    named = pick(rng, "cifar10", "cifar100", "mnist", "fashion_mnist")
    size = 4 * rng.randint(3, 60)
    size = size if size != 28 else 32
    out_of = {"data.pad": SIZE + many, "data.validation_size": TRAIN - 1 + many}
    key = rng.choice([*out_of])
    return pick(
        rng,
        *[Case("more than there is", (key,), ((key, out_of[key]),))] * 4,
        wrong("pad of the image", "data.pad", data__pad=size, data__image_size=size),
        wrong("no folder", "data.folder", data__name=named, data__folder=folder),
        wrong("no folder of TFDS", "data.folder data.name", data__train_size=0,
            data__test_size=0, data__name="imagenet2012", data__folder=folder),
        wrong("unknown set", "data.name", data__name=f"{named}_{name(rng)}"),
        wrong("too many made up", "data.train_size", data__train_size=2**26 + many),
        wrong("too many made up", "data.test_size", data__test_size=2**26 + many),
        wrong("too large", "data.train_size", data__image_size=2048,
            data__train_size=2**20 + many),
        wrong("size of the images", "data.image_size", **bundled,
            data__image_size=size),
        wrong("size of made-up images", "data.image_size",
            data__image_size=4 * rng.randint(1, 500) + rng.randint(1, 3)),
        wrong("too many of the set", "data.train_size",
            **bundled | {"data__train_size": 10_000 + many}),
        wrong("too many of the set", "data.test_size",
            **bundled | {"data__test_size": 2_000 + many}),
        wrong("too many classes", "data.classes", **bundled, data__classes=10 + many),
        wrong("one class", "data.classes", data__classes=1, seed=many),
        wrong("more classes than images", "data.classes data.train_size",
            data__classes=TRAIN + min(many, 2**19)),
        wrong("fewer images than classes", "data.classes data.train_size",
            **bundled | {"data__train_size": rng.randint(4, 9)}, batch_size=4),
        wrong("folder that is none", "data.folder", data__name=named,
            data__folder=no_folder),
    )  # fmt: skip


def run(rng) -> Case:
    """Batches and devices, epochs and steps; on `DEVICES` devices."""
    odd = DEVICES * rng.randint(0, 20) + rng.randint(1, DEVICES - 1)
    many = DEVICES * rng.randint(TRAIN // DEVICES + 1, 2**17)
    tiny = 10 ** -rng.uniform(1.5, 12)
    return pick(
        rng,
        wrong("batch on devices", "batch_size", batch_size=odd),
        wrong("batch on devices", "eval_batch_size", eval_batch_size=odd),
        wrong("batch on devices", "batch_size", batch_size=odd, runner="jit"),
        wrong("batch larger than the set", "batch_size", batch_size=many),
        wrong("batch of padding", "eval_batch_size",
            eval_batch_size=4096 + DEVICES * rng.randint(1, 2**17)),
        wrong("no step", "epochs", epochs=tiny),
        wrong("too many steps", "epochs", epochs=rng.uniform(1e8, 1e9)),
        wrong("dispatches", "steps_per_call", log_every=rng.randint(2, 10**6),
            steps_per_call=rng.randint(10**6 + 1, 2**20)),
        wrong("always evaluating", "eval_every", eval_every=tiny),
        wrong("fsdp on devices", "fsdp", runner="jit", fsdp=odd if odd > 1 else 3,
            seed=rng.randrange(10**6)),
        wrong("fsdp on devices", "fsdp", runner="jit", fsdp=DEVICES * (odd + 1)),
        wrong("parts on devices", "accumulation_steps", batch_size=DEVICES * 5,
            accumulation_steps=pick(rng, 2, 4, 10, 20), seed=rng.randrange(10**6)),
        wrong("held out of a batch", "meta.holdout", meta__mode="bilevel",
            batch_size=16, meta__holdout=1 / pick(rng, 3, 5, 6, 7, 9, 16),
            seed=rng.randrange(10**6)),
        wrong("held out of nothing", "meta.holdout", meta__mode="bilevel",
            batch_size=DEVICES, seed=rng.randrange(10**6)),
        wrong("batch of none", "batch_size", batch_size=pick(rng, 0, -odd)),
    )  # fmt: skip


def network(rng) -> Case:
    """What a network or a quantizer cannot do."""
    seed = rng.randrange(10**6)
    wide = rng.randint(9_000, 2**14)
    gradient = pick(rng, "fcgrad", "multifc", "lstmfc")
    return pick(
        rng,
        wrong("gradient network, bilevel", "meta.mode", meta__mode="bilevel",
            quantizer__name="metaquant", quantizer__metaquant={"network": gradient},
            seed=seed),
        wrong("too wide", "model.width", model={"name": pick(rng, "resnet18",
            "resnet34", "resnet50"), "width": wide}),
        wrong("too wide", "model.width", model={"name": "resnet110", "width": wide}),
        wrong("too wide a sub-network", "quantizer.quantnet", quantizer__quantnet={
            "width": wide, "depth": rng.randint(30, 64)}),
        wrong("sub-network of a bias", "layers", layers="head/bias", seed=seed),
        wrong("network without a layer", "layers", model={"name": "resnet8"},
            layers=f"stage{rng.randint(4, 99)}_block0/conv1/kernel"),
        wrong("block without a layer", "layers", model={"name": "resnet20"},
            layers=f"stage1_block{rng.randint(3, 99)}/conv1/kernel"),
        wrong("shared filters", "share layers", layers="all",
            share=pick(rng, "model", "kernel"), seed=seed,
            quantizer__quantnet={"unit": "filter", "width": rng.randint(2, 99)}),
        wrong("shared channels", "share layers", layers="all", share="model",
            quantizer__quantnet={"unit": "conv", "width": rng.randint(2, 16)}),
    )  # fmt: skip
