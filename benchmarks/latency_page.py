"""The Markdown page of benchmarks/latency.py, from its JSON result."""

PEERS = ("onnxruntime", "onnxruntime int8", "PyTorch", "PyTorch, channels last")
LCE = "Larq Compute Engine"


def table(result: dict) -> str:
    """The Markdown page of a result."""
    load = max(
        batch["share_of_other_processes"]
        for run in result["runs"]
        for batch in run["batches"].values()
    )
    versions = ", ".join(
        f"{name} {result['versions'][name]}"
        for name in ("jax", "onnxruntime", "torch")
        if name in result["versions"]
    )
    lines = [
        f"# Latency of {result['network']}",
        "",
        f"Written by `{result['command']}`; do not edit.",
        f"{result['benchmark'].capitalize()}, milliseconds: median (quartiles) of "
        f"{result['repeats']} runs,",
        "all programs in turns on the same cores. Over float: over our own float "
        "network.",
        f"{versions}; {result['cpu']}, {result['cores']} cores;",
        f"other processes took at most {100 * load:.0f}% of the machine.",
        "",
    ]
    for run in result["runs"]:
        for n, batch in run["batches"].items():
            rows = batch["rows"]
            lines += [
                f"## Batch {n}, {run['threads']} thread{'s'[: run['threads'] - 1]}",
                "",
                "| program | ms | over float | logits |",
                "|---|---:|---:|---|",
            ]
            lines += [line(name, row, n) for name, row in rows.items()]
            lines += [f"| {k} | {v} | | |" for k, v in run["missing"].items()]
            lines += ["", verdict(rows, result["bar"]), ""]
    lines += ["## Programs", ""]
    lines += [f"- {name}: {about}" for name, about in result["rows"].items()]
    return "\n".join(lines) + "\n"


def line(name: str, row: dict, images: str) -> str:
    """One row of the table, of a batch of so many images."""
    low, high = (1e3 * x for x in row["quartiles"])
    logits, error = row["logits"], row["logits"]["largest_difference"]
    if name == "float":
        said = "its own weights"
    elif logits["reference"] is None:
        said = f"{100 * logits['same_class']:.0f}% same class, off by {error:.2g}"
    elif error == 0 and logits["reference"] != name:
        said = "equal bit for bit"
    elif logits["reference"] == name:
        said = "reference"
    elif logits["images_that_differ"]:
        differ = logits["images_that_differ"]
        said = f"{differ} of {images} images have a sign rounded otherwise"
    else:
        said = f"equal within {error:.1g}"
    return (
        f"| {name} | {1e3 * row['median']:.2f} ({low:.2f} to {high:.2f}) | "
        f"{row['over_float']:.2f} | {said} |"
    )


def verdict(rows: dict, bar: float) -> str:
    """Whether the bar is met, and who is faster than our packed network."""
    packed = rows["packed W1A32"]
    ratio = packed["over_float"]
    met = "meets" if ratio <= bar else "misses"
    text = (
        f"Packed W1A32 takes {ratio:.2f} of our float program: {met} the bar of {bar}."
    )
    for words, better in (("Faster", True), ("Slower", False)):
        found = [
            f"{name} ({packed['median'] / rows[name]['median']:.2f}x)"
            for name in PEERS
            if name in rows and (rows[name]["median"] < packed["median"]) == better
        ]
        if found:
            text += f" {words} than it: {', '.join(found)}."
    counted = rows["packed W1A1"]["median"] / rows["W1A1 as floats"]["median"]
    text += f" Bit counts take {counted:.2f} of the same W1A1 network in floats."
    if LCE in rows:
        times = rows[LCE]["median"] / rows["packed W1A1"]["median"]
        text += f" The {LCE} takes {times:.1f} times as long as they do."
    return text
