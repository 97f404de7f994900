"""KerasTuner searches how to fine-tune a backbone; the best point is trained for good."""
