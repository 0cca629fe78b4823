"""Adds trained networks to the zoo of the package, verified and described.

    python -m tools.make_zoo add NAME WORKDIR        # of one run of train.py
    python -m tools.make_zoo study small_full --rows quantnet tanh_sign

The second form takes the first seed of the named rows from the work folders of
`quantnet_jax.experiments`, the networks behind its table.
"""

import argparse
import hashlib
import json
import math
import pathlib
import re
import shutil
import sys
import tempfile
from typing import Any

from quantnet_jax import export, zoo
from quantnet_jax.experiments import grid, pieces, results
from quantnet_jax.experiments.study import slug
from quantnet_jax.logging import records

LARGEST = 100_000
"""Bytes of an artifact at most: what a repository can carry."""
KEPT = (
    *("method", "seed", "steps", "seconds", "soft", "hard", "hard_bn", "packed"),
    *("exported", "examples", "versions", "device", "commit"),
)


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    wanted = {args.name: args.workdir} if args.action == "add" else of_study(args)
    try:
        for name, workdir in wanted.items():
            bn = args.action == "study"  # its tables compare hard + BN
            entry = add(name, workdir, replace=args.replace, bn=bn)
            print(f"{name}: {100 * entry['accuracy']:.2f}%, {entry['bytes']:,} bytes")
    except (ValueError, FileNotFoundError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    return 0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tools.make_zoo", description=str(__doc__).splitlines()[0]
    )
    parser.add_argument("--replace", action="store_true", help="an entry of that name")
    actions = parser.add_subparsers(dest="action", required=True)
    one = actions.add_parser("add", help="the network of one run")
    one.add_argument("name")
    one.add_argument("workdir", type=pathlib.Path)
    many = actions.add_parser("study", help="networks behind a table")
    many.add_argument("study", choices=grid.names())
    many.add_argument("--rows", nargs="+", default=["quantnet"])
    many.add_argument("--results", type=pathlib.Path, default=results.FOLDER)
    many.add_argument("--work", type=pathlib.Path, default=pathlib.Path("runs"))
    args = parser.parse_args(argv)
    if args.action == "study":
        known = grid.load(args.study).rows
        for row in args.rows:
            if row not in known:
                parser.error(f"--rows {row!r}: no such row of {', '.join(known)}")
    return args


def of_study(args: argparse.Namespace) -> dict[str, pathlib.Path]:
    """{name of the entry: workdir} of the first seed of some rows."""
    study = grid.load(args.study)
    found = results.of_study(args.study, study, args.results)
    options = pieces.Options(work=args.work)
    workdirs = {}
    for row in args.rows:
        run = grid.final_run(study, found, row, study.seeds[0])
        name = f"{args.study}-{slug(row)}".lower()
        workdirs[name] = pieces.workdir(args.study, run, options)
    return workdirs


def add(
    name: str,
    workdir: pathlib.Path,
    *,
    folder: pathlib.Path = zoo.FOLDER,
    replace: bool = False,
    bn: bool = False,
) -> dict[str, Any]:
    """Exports a run, verifies it, and writes file and entry.

    Args:
      name: of the entry: small letters, digits, '-', '.', '_'.
      workdir: of the run.
      folder: of the zoo.
      replace: an entry of that name.
      bn: re-estimate the BatchNorm statistics, see `quantnet_jax.export`.

    Returns:
      The entry; see `quantnet_jax.zoo.entries`.

    Raises:
      FileNotFoundError: there is no such run.
      ValueError: a bad or taken name, a file that is too large, or an export that does
        not predict what the run scored.
    """
    index = folder / "index.json"
    known = json.loads(index.read_text()) if index.exists() else {}
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name):
        raise ValueError(f"name={name!r}, expected small letters, digits, '-', '.'")
    if name in known and not replace:
        raise ValueError(f"{name!r} is in the zoo; give --replace")
    path = workdir / "config.json"
    if not path.exists():
        raise FileNotFoundError(f"{path} not found: {workdir} holds no run")
    config = json.loads(path.read_text())
    warm = bool(config.get("init_from"))
    config = portable(config)
    if config["data"]["validation_size"]:
        raise ValueError(f"{workdir}: scored on held-out images, not on the test set")
    with tempfile.TemporaryDirectory() as out:
        made = export.export(str(workdir), out, bn=bn)  # raises where one differs
        source = pathlib.Path(out) / "model.safetensors"
        size = source.stat().st_size
        if size > LARGEST:
            raise ValueError(
                f"{workdir}: model.safetensors has {size:,} bytes, expected at most "
                f"{LARGEST:,}"
            )
        file = folder / f"{name}.safetensors"
        shutil.copyfile(source, file)
    result = json.loads((workdir / "result.json").read_text())
    bits = [x["bits"] for x in result["layers"].values()]
    model = config["model"]
    entry = {
        "file": file.name,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "bytes": size,
        "weights": sum(math.prod(x["shape"]) for x in result["layers"].values()),
        "method": config["quantizer"]["name"],
        "bits": max(bits, default=32),
        "layers": config["layers"],
        "network": f"{model['name']}, width {model.get('width', 'default')}",
        "data": config["data"]["name"],
        "accuracy": made["packed"],
        "bn": bn,
        "warm": warm,
        "examples": made["examples"],
        "config": config,
        "result": {k: result[k] for k in KEPT if k in result},
    }
    if config["data"]["classes"]:
        entry["data"] += f", {config['data']['classes']} classes"
    records.write_json(index, dict(sorted((known | {name: entry}).items())))
    return entry


def portable(config: dict[str, Any]) -> dict[str, Any]:
    """A configuration without paths and without options of unused quantizers."""
    config["data"]["folder"] = config["init_from"] = config["teacher"] = ""
    for section in ("quantizer", "activation", "task"):
        used = config[section]["name"]
        kept = {k: v for k, v in config[section].items() if k in ("name", used)}
        config[section] = kept
    return config


if __name__ == "__main__":
    sys.exit(main())
