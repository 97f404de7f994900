"""What each metric is called, wherever it is printed, drawn or read."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Metric:
    """The words of a metric.

    Attributes:
        words: Its name in a sentence, a table or on an axis.
        percent: Whether it is a share, and shown in percent.
        meaning: What it is, for readers who do not know the name; '' where the name says it.
    """

    words: str
    percent: bool = True
    meaning: str = ""


#: By the key that results have it under, in the order of the tables.
METRICS = {
    "accuracy": Metric("accuracy"),
    "balanced_accuracy": Metric("balanced accuracy", meaning="mean sensitivity over the classes"),
    "macro_f1": Metric("macro F1", meaning="mean F1 over the classes"),
    "hsil_plus_sensitivity": Metric("HSIL+ sensitivity", meaning="HSIL or SCC, named as either"),
    "hsil_plus_specificity": Metric("HSIL+ specificity", meaning="NILM or LSIL, named as neither"),
    "roc_auc_macro": Metric(
        "ROC-AUC", percent=False, meaning="mean over the classes, one against the rest"
    ),
    "quadratic_kappa": Metric(
        "kappa", percent=False, meaning="agreement beyond chance, quadratic weights"
    ),
    "log_loss": Metric("log loss", percent=False),
}

#: The words of those that are shares.
SHARES = {key: metric.words for key, metric in METRICS.items() if metric.percent}
