"""From a field to the cells in it, in two stages."""
