"""The directory that versions are published in."""
