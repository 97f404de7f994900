"""Figures of predictions, how sure each is, and what the papers report."""
