"""What each metric is called, wherever it is printed, drawn or read."""

import dataclasses

from tfds_pap.classes import Classes


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
    "hsil_plus_specificity": Metric("HSIL+ specificity", meaning="the rest, named as neither"),
    "roc_auc_macro": Metric(
        "ROC-AUC", percent=False, meaning="mean over the classes, one against the rest"
    ),
    "quadratic_kappa": Metric(
        "kappa", percent=False, meaning="agreement beyond chance, quadratic weights"
    ),
    "log_loss": Metric("log loss", percent=False),
}


def metric(key: str, classes: Classes) -> Metric:
    """Returns a metric in the words of the classes that it is about.

    Args:
        key: One of `METRICS`.
        classes: What is looked for has a name of its own in a lab's classes.

    Example:
        >>> lab = Classes(("a", "b", "c"), ("a", "b", "c"), positive=("b", "c"))
        >>> metric("hsil_plus_sensitivity", lab).words, metric("accuracy", lab).words
        ('sensitivity of positive', 'accuracy')
    """
    own = METRICS[key]
    if not key.startswith("hsil_plus_"):
        return own
    what = key.removeprefix("hsil_plus_")
    shown = dict(zip(classes.names, classes.shown, strict=True))
    members = " or ".join(shown[name] for name in classes.positive)
    words = own.words
    if classes.positive_name != "HSIL+":
        words = f"{what} of {classes.positive_name}"
    only = len(classes.positive) == 1
    named = "named so" if only else "named as either"
    if what == "specificity":
        return dataclasses.replace(own, words=words, meaning=f"not {members}, and not {named}")
    return dataclasses.replace(own, words=words, meaning=f"{members}, {named}")


#: The words of those that are shares.
SHARES = {key: metric.words for key, metric in METRICS.items() if metric.percent}
