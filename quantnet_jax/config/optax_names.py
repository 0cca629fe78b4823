"""Which functions of optax a configuration may name."""

import inspect

import optax

UNUSABLE = (
    *("learning_rate", "schedule", "noisy_sgd"),  # no optimizers alone
    *("lbfgs", "polyak", "polyak_sgd", "search"),  # need more than gradients
    *("rprop", "sm3", "distance_over_gradients"),  # take no schedule, or no matrix
)


def optimizers() -> list[str]:
    """Transformations that need gradients, weights and a learning rate, no more."""
    return [
        name
        for name, parameters, made in _functions()
        if "GradientTransformation" in made
        and (name.startswith("scale_by_") or "learning_rate" in parameters)
        and not name.endswith(UNUSABLE)
        and name not in ("sgd", "adam", "optimistic_adam")  # ours, and an old one
        and all(
            p.default is not p.empty
            for key, p in parameters.items()
            if key != "learning_rate" and p.kind is not p.VAR_KEYWORD
        )
    ]


def _functions() -> list[tuple]:
    """(name, parameters, name of the returned type) of the public functions."""
    found = []
    for name, fn in inspect.getmembers(optax, inspect.isfunction):
        signature = inspect.signature(fn)
        made = getattr(
            signature.return_annotation, "__name__", str(signature.return_annotation)
        )
        found.append((name, signature.parameters, made))
    return found
