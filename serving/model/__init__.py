"""What is exported: the served graph, its guard against hostile images, and its checks."""
