"""The search with KerasTuner: `python -m finetune.search`."""
