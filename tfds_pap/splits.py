"""Names of the parts of a data set as its folders cut it."""

#: WHOLE is the one split of a tree that has none; TFDS reserves "all".
TRAIN, VALIDATION, TEST, WHOLE = "train", "validation", "test", "whole"
