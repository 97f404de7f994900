"""The papers' data sets as TensorFlow Datasets, and their way into a model.

Importing the package registers `pap_db3` and `pap_db4`:

    >>> import tensorflow_datasets as tfds, tfds_pap
    >>> train = tfds.load("pap_db4/phantom", split="train")  # doctest: +SKIP
"""

from tfds_pap.pap_db3 import pap_db3_dataset_builder as pap_db3_dataset_builder
from tfds_pap.pap_db4 import pap_db4_dataset_builder as pap_db4_dataset_builder
