"""pap_db4: the papers' DB_4. Stage 2: which Bethesda class does the cell belong to?"""

import tensorflow_datasets.public_api as tfds

from tfds_pap import taxonomy, tree_builder


class Builder(tree_builder.TreeBuilder):
    """Stage 2: which Bethesda class does the cell belong to?

    Example:
        >>> import tensorflow_datasets as tfds, tfds_pap
        >>> train = tfds.load("pap_db4/phantom", split="train")  # doctest: +SKIP
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}
    BUILDER_CONFIGS = tree_builder.configs(stage=2)
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    The images are fetched by hand. Two copies are known:
    - ResNet-50/DB_4 in the public repository
      https://github.com/CarlosJMB/Deep-Reinforcement-Learning-for-Efficient-Digital-Pap-Smear-Analysis
    - the Google Drive folders that the papers' readmes link:
      1fz9-srsO7EBUKztheth8f1W_g1DAySB_ and 1tzuhemvmCR94rbQK4_CZd_HoEq_mJQLU

    Lay them out below manual_dir exactly so (1 = HSIL, 2 = LSIL, 3 = NILM, 4 = SCC):
      DB_4/{train,validation}/{1,2,3,4}/*.jpg  (also .jpeg, .png, .bmp, .tif)
      DB_4/groups.csv  (optional; columns file,group: the slide, field or patient of each image,
                        file relative to DB_4)
    """

    STAGE = 2
    TREE = "DB_4"
    CLASSES = taxonomy.STAGE2_CLASSES
    CLASS_FOLDERS = taxonomy.DB4_FOLDERS
    PUBLISHED_COUNTS = {
        "train": dict.fromkeys(taxonomy.STAGE2_CLASSES, 1000),
        "validation": dict.fromkeys(taxonomy.STAGE2_CLASSES, 200),
    }
    PUBLISHED_NAME = r"(train|validation)/([1-4])/\1_\2_\d+\.jpg"
    PUBLISHED_NAME_EXAMPLE = "train/1/train_1_257.jpg"
    PUBLISHED_PIXELS = 250
