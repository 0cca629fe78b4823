"""Members of 1 bit alone."""
