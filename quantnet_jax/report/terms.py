"""Terms of a report, explained on hover and in a list."""

import html
from typing import Any

TERMS = {
    "Soft": "the network with the soft weights that training differentiates",
    "Hard": "the same network with the quantized weights that ship",
    "Hard + BN": "hard, with BatchNorm statistics recalibrated for these weights",
    "Float": "the same network trained without quantization",
    "Packed": "what the exported file predicts",
    "Exported": "what the exported program predicts",
    "Gap": "how much is lost when soft weights are replaced by the hard ones",
    "Train loss": "of the training batches, without penalty",
    "Sharpness": "slope of the soft quantizer: the higher, the nearer to hard",
    "Codes flipped": "codes that differ from those of the evaluation before",
    "Learning rate": "of the weights",
    "Gradient norm": "Euclidean norm of the gradient of the weights",
    "Penalty": "what the quantizer adds to the loss",
    "Step time": "of one training step, without compilation and evaluation",
    "(soft − hard)²": "mean squared distance of soft and hard weights over the scale²",
    "undecided": "weights whose soft value is far from every level",
    "flips": "codes of this layer that differ from the evaluation before",
    "Size": "bytes of all tensors in the exported file",
    "Compression": "bytes of the float32 network over those of the file",
    "MACs": "multiply-accumulates for one example, by bits of weight / input",
}
"""Word of a title or a header -> what it means; the longest that fits counts."""


def meaning(title: str) -> str:
    """What a title or header means, '' if it needs no word."""
    known = [word for word in TERMS if title.startswith(word)]
    return TERMS[max(known, key=len)] if known else ""


def term(title: str) -> str:
    """A title as HTML, with its meaning on hover."""
    if not (text := meaning(title)):
        return escape(title)
    return f'<abbr title="{escape(text)}">{escape(title)}</abbr>'


def terms() -> str:
    """All terms, for those who cannot hover."""
    rows = "".join(
        f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in TERMS.items()
    )
    return f"<details><summary>Terms</summary><dl class='card'>{rows}</dl></details>"


def escape(text: Any) -> str:
    return html.escape(str(text), quote=True)
