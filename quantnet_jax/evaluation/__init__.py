"""Evaluation: soft against hard weights, the discretization gap."""
