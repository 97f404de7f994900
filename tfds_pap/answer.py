"""What every page opens with: the question, the answer, its figures, and what it does not mean."""

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of an answer.

    Attributes:
        value: With its unit, for example '97.3 %'; or why there is none.
        interval: Its 95 % interval, for example '[95.9, 98.2]', or why there is none.
        words: What it is.
    """

    value: str
    interval: str
    words: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """The box at the top of a page; every part has words.

    Attributes:
        question: What a reader came with; ends in '?'.
        answer: One sentence.
        figures: What the answer rests on, at least one.
        limit: What the answer does not mean.

    Raises:
        ValueError: A part is missing.
    """

    question: str
    answer: str
    figures: Sequence[Figure]
    limit: str

    def __post_init__(self) -> None:
        parts = (self.question.endswith("?"), self.answer, self.figures, self.limit)
        if not all(parts):
            raise ValueError(
                f"answer: expected a question, a sentence, a figure and a limit: {self}"
            )
