"""Analyses of networks and compiled programs; nothing here trains differently."""
