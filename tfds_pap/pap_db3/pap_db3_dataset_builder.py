"""pap_db3: the papers' DB_3. Stage 1: is there a cell in the ROI?"""

import tensorflow_datasets.public_api as tfds

from tfds_pap import taxonomy, tree_builder


class Builder(tree_builder.TreeBuilder):
    """Stage 1: is there a cell in the ROI?

    Example:
        >>> import tensorflow_datasets as tfds, tfds_pap
        >>> train = tfds.load("pap_db3/phantom", split="train")  # doctest: +SKIP
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = tree_builder.configs(stage=1)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The images are fetched by hand. Two copies are known:
    - Detection-CNN/DB_3 in the public repository
      https://github.com/CarlosJMB/Deep-Reinforcement-Learning-for-Efficient-Digital-Pap-Smear-Analysis
    - the Google Drive folders that the papers' readmes link:
      1fz9-srsO7EBUKztheth8f1W_g1DAySB_ and 1tzuhemvmCR94rbQK4_CZd_HoEq_mJQLU

    Lay them out below manual_dir exactly so (0 = cell, 1 = background):
      DB_3/{train,validation}/{0,1}/*.jpg  (also .jpeg, .png, .bmp, .tif)
      DB_3/groups.csv  (optional; columns file,group: the slide, field or patient of each image,
                        file relative to DB_3)
    """

    STAGE = 1
    TREE = "DB_3"
    CLASSES = taxonomy.STAGE1_CLASSES
    CLASS_FOLDERS = taxonomy.DB3_FOLDERS
    PUBLISHED_COUNTS = {
        "train": {"cell": 800, "background": 800},
        "validation": {"cell": 200, "background": 200},
    }
    PUBLISHED_NAME = r"(train|validation)/[01]/(new_\d+_)?\d+\.jpe?g"
    PUBLISHED_NAME_EXAMPLE = "train/0/17.jpg or train/0/new_109_5628811.jpeg"
    PUBLISHED_PIXELS = None
