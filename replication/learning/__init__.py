"""The networks of the papers: weights, features, training, and what a network looked at."""
