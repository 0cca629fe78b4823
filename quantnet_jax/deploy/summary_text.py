"""The table of a summary, for people."""

from typing import TYPE_CHECKING

from quantnet_jax.common.text import table

if TYPE_CHECKING:
    from quantnet_jax.deploy.summary import Summary

MIB = 2**20
HEADERS = (
    *("layer", "shape", "bits", "input bits", "output", "weights"),
    *("codes B", "levels B", "scales B", "float B", "MACs"),
)


def to_text(summary: "Summary") -> str:
    """The summary as a table for people, with totals below."""
    shape = lambda sizes: "x".join(map(str, sizes or ()))
    number = lambda x: f"{x:,}" if x else ""
    bytes_of = lambda x: f"{x:,} bytes, {x / MIB:.3f} MiB"
    rows = [
        (
            *(row.path, shape(row.shape), number(row.bits), number(row.activation)),
            *(shape(row.output), number(row.weights), number(row.codes)),
            *map(number, (row.levels, row.scales, row.floats, sum(row.macs.values()))),
        )
        for row in summary.rows
    ]
    names = ("weights", "codes", "levels", "scales", "floats")
    weights, macs = summary.total("weights"), sum(summary.macs.values())
    total = ("total", *[""] * 4, *map(number, (*map(summary.total, names), macs)))
    share = summary.total("quantized") / max(1, weights)
    products = ", ".join(
        f"{count:,} of {precision} bits ({count / max(1, macs):.1%})"
        for precision, count in summary.macs.items()
    )
    notes = (
        ("weights", f"{weights:,}, {share:.1%} of them as codes"),
        ("payload", bytes_of(summary.payload)),
        ("float32 network", bytes_of(summary.float_bytes)),
        ("compression", f"{summary.compression:.2f} x"),
        ("MACs, weight/input", products or "none"),
    )
    if pruned := summary.total("pruned"):
        text = f"{pruned:,}, {pruned / weights:.1%} of the weights, held as a mask"
        notes = (*notes[:1], ("pruned", text), *notes[1:])
    lines = [f"{name:20s}{text}" for name, text in notes]
    return "\n".join([table(rows, HEADERS, left=2, total=total), "", *lines])
