"""The file format: how codes, levels, scales and trees are bytes, see docs/."""
