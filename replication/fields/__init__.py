"""Whole fields: read in two stages, matched to truth, and shown.

Coordinates are pixels with the origin at the upper left corner of the upper left pixel. Those of a
field are of the field *as it is read*, at the magnification that the models were trained for; those
of `cells.Cells` are of the file, so that other programs find the same place.
"""
