"""The table of a summary, for people."""

from collections.abc import Sequence

from quantnet_jax.deploy.summary import Summary

MIB = 2**20
HEAD = (
    *("layer", "shape", "bits", "input bits", "output", "weights"),
    *("codes B", "levels B", "scales B", "float B", "MACs"),
)


def to_text(summary: Summary) -> str:
    """The summary as a table for people, with totals below."""
    lines: list[tuple[str, ...]] = [HEAD]
    for row in summary.rows:
        lines.append(
            (
                row.path,
                _shape(row.shape),
                str(row.bits or ""),
                _number(row.activation),
                _shape(row.output or ()),
                *map(_number, (row.weights, row.codes, row.levels, row.scales)),
                *map(_number, (row.floats, sum(row.macs.values()))),
            )
        )
    sums = map(summary.total, ("weights", "codes", "levels", "scales", "floats"))
    macs_total = sum(summary.macs.values())
    lines.append(("total", "", "", "", "", *map(_number, (*sums, macs_total))))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = [_line(line, widths) for line in lines]
    rule = "-" * max(map(len, texts))
    share = summary.total("quantized") / max(1, summary.total("weights"))
    products = ", ".join(
        f"{number:,} of {precision} bits ({number / max(1, macs_total):.1%})"
        for precision, number in summary.macs.items()
    )
    notes = (
        ("weights", f"{summary.total('weights'):,}, {share:.1%} of them as codes"),
        ("payload", _bytes(summary.payload)),
        ("float32 network", _bytes(summary.float_bytes)),
        ("compression", f"{summary.compression:.2f} x"),
        ("MACs, weight/input", products or "none"),
    )
    return "\n".join(
        [texts[0], rule, *texts[1:-1], rule, texts[-1], ""]
        + [f"{name:20s}{text}" for name, text in notes]
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left, numbers to the right."""
    pairs = enumerate(zip(cells, widths, strict=True))
    texts = [x.ljust(n) if i in (0, 1) else x.rjust(n) for i, (x, n) in pairs]
    return "  ".join(texts).rstrip()


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _number(x: int | None) -> str:
    return f"{x:,}" if x else ""


def _bytes(x: int) -> str:
    return f"{x:,} bytes, {x / MIB:.3f} MiB"
