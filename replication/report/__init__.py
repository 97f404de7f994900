"""The page of a run, and its model card."""
