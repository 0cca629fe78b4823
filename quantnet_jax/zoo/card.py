"""The model card of a network of the zoo, from its entry and its file."""

from typing import Any

from quantnet_jax import zoo

LICENCE = "Apache-2.0, as this package"
DATA = {
    "bundled": "10,000 + 2,000 images of Fashion-MNIST (MIT licence), bundled",
    "fashion_mnist": "Fashion-MNIST (MIT licence)",
    "mnist": "MNIST",
    "cifar10": "CIFAR-10 (Krizhevsky 2009; published without a licence)",
    "cifar100": "CIFAR-100 (Krizhevsky 2009; published without a licence)",
}


def card(name: str) -> str:
    """Data, protocol, accuracy, size, multiply-accumulates and licence, as Markdown.

    Args:
      name: of an entry.

    Raises:
      ValueError: there is no such entry.
    """
    # Here: a listing needs neither.
    from quantnet_jax.deploy import load
    from quantnet_jax.deploy.summary import summarize_network

    path, entry = zoo.path(name), zoo.entries()[name]
    network = load(path, popcount=False)
    size = summarize_network(network.params, network.spec)
    lines = [f"- **{key}**: {text}" for key, text in _facts(entry, size).items()]
    return "\n".join([f"### {name}", "", *lines])


def _facts(entry: dict[str, Any], size: Any) -> dict[str, str]:
    config, result = entry["config"], entry["result"]
    share, examples = entry["accuracy"], entry["examples"]
    error = 100 * (share * (1 - share) / examples) ** 0.5
    data, _, classes = entry["data"].partition(", ")
    weights = config["weights"]
    return {
        "network": f"{entry['network']}, layers {entry['layers']!r} quantized: "
        f"{entry['weights']:,} weights of {entry['bits']} bit by {entry['method']}",
        "data": ", ".join(filter(None, (DATA.get(data, data), classes))),
        "protocol": f"{config['epochs']:g} epochs, batch {config['batch_size']}, "
        f"{weights['optimizer']} at {weights['learning_rate']:g} "
        f"({weights['schedule']}), weight decay {weights['weight_decay']:g}, seed "
        f"{config['seed']}; after the last epoch, never the best"
        + (", from a trained float network" if entry["warm"] else "")
        + (", BatchNorm recalibrated for the hard weights" if entry["bn"] else ""),
        "accuracy": f"{100 * share:.2f} % of {examples:,} test images (standard error "
        f"{error:.2f}), by the file itself",
        "size": f"{entry['bytes']:,} bytes, {size.compression:.1f} times smaller than "
        "the float32 network",
        "multiply-accumulates": ", ".join(
            f"{count:,} of {bits} bits" for bits, count in size.macs.items()
        )
        + " (weight/input), an image",
        "made": f"{result['seconds'] / 60:.0f} minutes on {result['device']}, jax "
        f"{result['versions']['jax']}, commit {result['commit'][:10]}",
        "licence": LICENCE,
    }
