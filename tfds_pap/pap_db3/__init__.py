"""The pap_db3 dataset folder, in the conventions of TensorFlow Datasets."""
