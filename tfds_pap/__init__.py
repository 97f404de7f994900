"""The papers' data sets as TensorFlow Datasets, and their way into a model.

Importing the package registers `pap_db3`, `pap_db4` and `pap_folders`, where TFDS is installed (the
client of a server needs none):

    >>> import tensorflow_datasets as tfds, tfds_pap
    >>> train = tfds.load("pap_db4/phantom", split="train")  # doctest: +SKIP
"""

import importlib.util

if importlib.util.find_spec("tensorflow_datasets"):
    from tfds_pap.pap_db3 import pap_db3_dataset_builder as pap_db3_dataset_builder
    from tfds_pap.pap_db4 import pap_db4_dataset_builder as pap_db4_dataset_builder
    from tfds_pap.pap_folders import pap_folders_dataset_builder as pap_folders_dataset_builder
