"""The two-stage papers: models, training, evaluation, report."""
