"""A protocol small enough for a test, and results that nobody trained."""

from tiny import tiny_config

from benchmarks.protocol_rows import Row
from benchmarks.protocols import Protocol, Start

STARTS = (Start("scratch", 0.0, 2.0, 1 / 3), Start("warm", 1.0, 1.0))
ROWS = {
    "float": Row("identity"),
    "quantnet": Row("quantnet"),
    "clipped_ste": Row("clipped_ste"),
    "wide": Row("quantnet", {"quantizer.quantnet.width": 8}, like="quantnet"),
}


TINY = Protocol(
    "made up",
    tiny_config,
    "all but two",
    STARTS,
    (0.1, 0.2),
    ROWS,
    search=0.5,
    validation_size=20,
    seeds=(0, 1),
    eval_every=1.0,
)


def result(accuracy, epochs=2.0, **more):
    """What a run of that accuracy leaves."""
    scores = {"soft": accuracy + 0.01, "hard": accuracy - 0.01, "hard_bn": accuracy}
    record = {"epoch": 1.0} | scores
    return {
        **scores,
        "device": "1 x cpu",
        "cores": 1,
        "wall": 60.0,
        "seconds": 60.0,
        "settings": {"epochs": epochs},
        "curve": [record, record | {"epoch": 2.0}],
        "layers": {},
    } | more
