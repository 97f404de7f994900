"""The pap_folders dataset folder, in the conventions of TensorFlow Datasets."""
