"""Backbones compared: ranked, drawn, written down."""
