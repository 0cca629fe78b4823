"""Bits for each layer, by their sensitivity, against one width for all.

The widths of 'mixed' are what `python -m quantnet_jax.sensitivity` proposed for budgets
of 5,930 and 7,128 bytes, on images held out of the training images, see
results/sensitivity.jsonl. 'largest layer' spends the bytes where they are most.
"""

from quantnet_jax.experiments.study import Row
from sweeps import common


def of(bits: int, **others: int) -> Row:
    """LSQ of a width, and of others where a layer says so."""
    rules = tuple(
        {"pattern": f"{name}/kernel", "quantizer": "lsq", "bits": n}
        for name, n in others.items()
    )
    return Row("lsq", {"quantizer.lsq.bits": bits, "rules": rules})


def layer(stage: int, conv: int) -> str:
    return f"stage{stage}_block0/conv{conv}"


STUDY = common.quick(
    "Bits for each layer: LSQ, ResNet-8, width 8, bundled images",
    {f"{bits} bits": of(bits) for bits in (2, 3, 4)}
    | {
        "mixed, 5,930 bytes": of(
            4, **{layer(1, 2): 3, layer(2, 2): 3, layer(3, 1): 2, layer(3, 2): 2}
        ),
        "mixed, 7,128 bytes": of(3, **{layer(1, 1): 4, layer(2, 1): 4, layer(3, 1): 2}),
        "largest layer 3 bits": of(2, **{layer(3, 2): 3}),
        "quantnet, 3 bits": Row("quantnet", {"quantizer.quantnet.bits": 3}),
    },
    columns=("bits", "kB", "soft", "hard", "hard + BN"),
    seeds=tuple(range(5)),
)
