"""The datasets: each in its own format, and the one list of their names."""
