"""Tasks: what a batch is, its loss and its metrics, as pure functions."""
