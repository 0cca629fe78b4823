"""Training: state, steps, optimizers, runners, evaluation, checkpoints, logs."""
