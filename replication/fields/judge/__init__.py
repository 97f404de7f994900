"""Cells that were found, held against annotated nuclei."""
