"""Whether what a run directory or a committed table states comes out again."""
