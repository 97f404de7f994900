"""A run: its directory, how it computes, its steps, and what it holds when read back."""
