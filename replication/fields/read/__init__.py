"""Fields of any size, read piece by piece."""
