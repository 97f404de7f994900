"""The pap_db4 dataset folder, in the conventions of TensorFlow Datasets."""
