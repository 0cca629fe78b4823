"""Checkpoints: save, restore, resume, warm start."""
