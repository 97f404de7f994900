"""Naming the cells of images: what is read, what a model says of it, and where that is written."""
