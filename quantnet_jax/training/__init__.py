"""Training: experiment, state, steps, optimizers, the loop, the feed of batches."""
