"""Gradient estimators: how gradients come about, and the choice among them."""
