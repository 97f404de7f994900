"""The two-stage papers: models, training, evaluation, report; and ten functions for a notebook.

    import replication

    models = replication.load_models("runs/phantom")
    predictions = replication.predict_images(models[2], ["cell.png"])

Nothing heavy is imported before one of them is asked for. The commands use the same functions.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replication.learning.features import extract_features, feature_spec
    from replication.learning.heads import train_head
    from replication.library import compare_models, scan_field
    from replication.measures.evaluation import evaluate
    from replication.naming.trained import load_models, predict_images
    from tfds_pap.preparing import prepare as prepare_images

__all__ = [
    "compare_models",
    "evaluate",
    "export_model",
    "extract_features",
    "feature_spec",
    "load_models",
    "predict_images",
    "prepare_images",
    "scan_field",
    "train_head",
]

#: Name -> module and attribute. By name alone, so that nothing here imports serving.
_HOMES = {
    "prepare_images": ("tfds_pap.preparing", "prepare"),
    "feature_spec": ("replication.learning.features", "feature_spec"),
    "extract_features": ("replication.learning.features", "extract_features"),
    "train_head": ("replication.learning.heads", "train_head"),
    "evaluate": ("replication.measures.evaluation", "evaluate"),
    "compare_models": ("replication.library", "compare_models"),
    "load_models": ("replication.naming.trained", "load_models"),
    "predict_images": ("replication.naming.trained", "predict_images"),
    "scan_field": ("replication.library", "scan_field"),
    "export_model": ("serving.model.exporting", "export_model"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tfds_pap import commands

    commands.prepare_tensorflow()
    module, attribute = _HOMES[name]
    globals()[name] = getattr(importlib.import_module(module), attribute)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
