"""What a model says of one image, in this process or on a server."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model says of one image.

    Attributes:
        probabilities: Of each class, in the model's order: that of severity.
        label: Name of the class that it chose.
        class_id: Position of that class.
        hsil_plus: Calibrated probability of HSIL or SCC; None where the model has no such output.
        abstain: Whether it would rather leave the image to a person; None where it cannot say.
        model_version: Version that answered; None where the server did not tell, or there is none.
        names: Of all classes; empty where they are not known.
    """

    probabilities: tuple[float, ...]
    label: str
    class_id: int
    hsil_plus: float | None
    abstain: bool | None
    model_version: int | None = None
    names: tuple[str, ...] = ()
