"""Parameter trees: paths, rules, axes, and the traces that axes are read in."""
