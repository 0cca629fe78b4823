"""Direct Quantization: weights that are levels, and balanced activations, W2A2."""

from quantnet_jax.experiments.study import Row
from sweeps import common

A2 = {"activation.name": "lq_nets", "activation.lq_nets.bits": 2}
BALANCED = A2 | {"activation.lq_nets.balanced": True}


FALLING = {"schedule": "linear", "start": 1.0, "end": 0.0, "until": 0.9}


def of(method: str, activation: dict) -> Row:
    """A member of 2 bits, and activations of 2 bits."""
    return Row(method, {f"quantizer.{method}.bits": 2} | activation)


STUDY = common.quick(
    "Direct Quantization beside LQ-Nets, W2A2, ResNet-8, width 8, bundled images",
    {
        "lq_nets": of("lq_nets", A2),
        "lq_nets, balanced": of("lq_nets", BALANCED),
        "direct": of("direct", A2),
        "direct, balanced": of("direct", BALANCED),
        "direct, residual falling": of(
            "direct", A2 | {"quantizer.direct.residual": FALLING}
        ),
        "lsq": of("lsq", A2),
        "quantnet": of("quantnet", A2),
    },
    changes={"meta.learning_rate": 1e-3},
)
