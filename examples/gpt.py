"""Trains a character-level GPT (nnx) with ternary or 1-bit weights in its blocks.

    python examples/gpt.py --method=bitnet
    python examples/gpt.py --method=quantnet --text=tinyshakespeare.txt

All matrix products of the blocks are quantized; embeddings (the head is the embedding
of the characters), positions and LayerNorms stay float. Network and optimizer are
nanoGPT's smallest. Text: the help pages of Python, or a file.
"""

import argparse
import functools
import math
import pathlib
import shlex
import sys
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

# Your model begins here --------------------------------------------------------------


class Block(nnx.Module):
    """Causal attention and two dense layers."""

    def __init__(self, size: int, heads: int, rngs: nnx.Rngs):
        start = nnx.initializers.normal(0.02)
        linear = lambda *n: nnx.Linear(*n, kernel_init=start, use_bias=False, rngs=rngs)
        norm = lambda: nnx.LayerNorm(size, use_bias=False, rngs=rngs)
        self.heads, self.norms = heads, nnx.List([norm(), norm()])
        self.qkv, self.out = linear(size, 3 * size), linear(size, size)
        self.up, self.down = linear(size, 4 * size), linear(4 * size, size)

    def __call__(self, x):
        split = self.qkv(self.norms[0](x)).reshape(*x.shape[:2], 3, self.heads, -1)
        q, k, v = jnp.moveaxis(split, 2, 0)
        mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.reshape(x.shape))
        return x + self.down(nnx.gelu(self.up(self.norms[1](x))))


class GPT(nnx.Module):
    """Tokens (N, T) -> logits (N, T, characters)."""

    def __init__(self, characters, context, size, layers, rngs):
        start = nnx.initializers.normal(0.02)
        embed = lambda n: nnx.Embed(n, size, embedding_init=start, rngs=rngs)
        self.embed, self.positions = embed(characters), embed(context)
        self.blocks = nnx.List([Block(size, 4, rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(size, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None]
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x))


# Your model ends here ----------------------------------------------------------------

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # where the package is not installed

import quantnet_jax as qn  # noqa: E402
from quantnet_jax.experiments import results  # noqa: E402
from quantnet_jax.logging.provenance import provenance  # noqa: E402

QUANTIZED = "blocks/.*/kernel"  # all matrix products of the blocks
RATES = {"float": 3e-3, "bitnet": 1e-2, "quantnet": 1e-2}
BATCH, SCORED = 12, 64  # windows of a training step, and of a piece of the test text


def quantizer(method: str, steps: int) -> qn.Quantizer:
    """The quantizer of a method."""
    if method == "quantnet":
        sharp = qn.schedules.exponential(0.3, 20.0, steps)
        return qn.quantnet(unit="filter", width=8, scale="mean_abs", sharpness=sharp)
    return {"float": qn.identity, "bitnet": qn.bitnet}[method]()


def optimizer(rate: float, block_rate: float, steps: int):
    """AdamW with warm-up, cosine decay to a tenth, and weight decay of matrices."""

    def adamw(rate):
        schedules = optax.warmup_cosine_decay_schedule
        schedule = schedules(0.0, rate, steps // 20, steps, rate / 10)
        matrices = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
        return optax.adamw(schedule, b2=0.99, weight_decay=0.1, mask=matrices)

    group = lambda path, _: "blocks" if path[-1].key == "kernel" else "others"
    groups = lambda params: jax.tree_util.tree_map_with_path(group, params)
    rates = {"others": adamw(rate), "blocks": adamw(block_rate)}
    each = optax.multi_transform(rates, groups)
    return optax.chain(optax.clip_by_global_norm(1.0), each)


def windows(tokens: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    """Pieces of context + 1 tokens."""
    return tokens[starts[:, None] + np.arange(context + 1)]


def generate(run, tokens: list[int], count: int, context: int) -> list[int]:
    """`tokens` and `count` sampled ones; `run(tokens (1, T)) -> logits`."""
    for n in range(count):
        last = tokens[-context:]
        logits = run(np.asarray([last + [0] * (context - len(last))]))[0, len(last) - 1]
        tokens = [*tokens, int(jax.random.categorical(jax.random.key(n), logits))]
    return tokens


def main(argv: list[str] | None = None) -> dict:
    """Trains, prints soft and hard bits a character, saves, and generates."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--method", choices=RATES, default="bitnet")
    parser.add_argument("--text", help="a file; default: the help of Python")
    parser.add_argument("--part", type=float, default=1.0, help="of it that is read")
    for name, default in (("steps", 2000), ("context", 64), ("size", 128)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, help="default: of the method")
    parser.add_argument(
        "--block-rate", type=float, help="of kernels; default: the same"
    )
    parser.add_argument("--generate", type=int, default=200, help="characters")
    parser.add_argument("--out", default="gpt.safetensors", help="packed file")
    parser.add_argument("--record", action="store_true", help="to results/text.jsonl")
    args = parser.parse_args(argv)
    context, steps = args.context, args.steps

    text = (
        pathlib.Path(args.text).read_text() if args.text else "\n".join(topics.values())
    )
    characters = "".join(sorted({*text}))
    tokens = np.asarray([characters.index(c) for c in text], np.int32)
    tokens = tokens[: round(args.part * len(tokens))]
    train, test = np.split(tokens, [len(tokens) * 9 // 10])
    every = np.arange(0, len(test) - context, context)
    every = every[: len(every) // SCORED * SCORED].reshape(-1, SCORED)
    if not every.size:
        parser.error(f"the text has {len(tokens)} characters, too few to score")

    rngs = nnx.Rngs(args.seed)
    model = GPT(len(characters), context, args.size, args.layers, rngs)
    params, state, call = qn.nnx.split(model)
    apply = lambda params, tokens: call(params, state, tokens)[0]

    def loss(params, tokens):
        """Mean nats of a character, given those before it."""
        logits, wanted = apply(params, tokens[:, :-1]), tokens[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, wanted).mean()

    q = qn.tree_quantizer([qn.Rule(QUANTIZED, quantizer(args.method, steps))], params)
    qparams = jax.jit(q.init)(jax.random.key(args.seed), params)
    args.learning_rate = args.learning_rate or RATES[args.method]
    args.block_rate = args.block_rate or args.learning_rate
    tx = optimizer(args.learning_rate, args.block_rate, steps)
    update = qn.make_update(q, tx)
    step = jax.jit(functools.partial(update.step, loss))
    opt_state, rng = update.init(params, qparams), np.random.default_rng(args.seed)
    for n in range(1, steps + 1):
        batch = windows(train, rng.integers(len(train) - context, size=BATCH), context)
        params, qparams, opt_state, value = step(params, qparams, opt_state, batch)
        if n % 100 == 0:
            print(f"step {n}: {value:.3f} nats a character", flush=True)

    mean = jax.jit(loss)
    score = lambda w: np.mean([mean(w, windows(test, x, context)) for x in every])
    found = qn.gap(score, q, qparams, params, steps, higher_is_better=False)
    bits = {name: x / math.log(2) for name, x in found._asdict().items()}
    for name, x in bits.items():
        print(f"{name}  {x:.3f} bits a character")

    hard, about = q.hard(qparams, params), {"characters": characters}
    example = test[None, :context]
    size = qn.save(args.out, hard, apply=apply, example=example, info=about)["file"]
    whole = 4 * sum(x.size for x in jax.tree.leaves(params))
    print(f"{args.out}: {size} bytes, {size / whole:.3f} of float32")
    run = qn.load(args.out, apply=apply)
    made = generate(run, test[:context].tolist(), args.generate, context)
    print("".join(characters[n] for n in made))
    result = bits | {"bytes": size, "float bytes": whole}
    if args.record:
        words = sys.argv[1:] if argv is None else argv
        command = shlex.join(["python", "examples/gpt.py", *words])
        record = {"command": command, **vars(args), **result, **provenance()}
        results.append("text", record, ROOT / results.FOLDER)
    return result | {"made": made, "hard tree": hard, "apply": apply}


if __name__ == "__main__":
    main()
