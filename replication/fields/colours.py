"""The colours of the classes, which people with any colour vision tell apart (Okabe and Ito)."""

#: RGB of NILM, LSIL, HSIL and SCC. Each comes with its letter, for those who see no colour.
COLOURS = ((0, 114, 178), (230, 159, 0), (213, 94, 0), (160, 32, 120))

LETTERS = ("N", "L", "H", "S")
