"""Public benchmarks: what each publishes, and how a row of it becomes a question.

The prompts are those that evaluation harnesses ask by default (lmms-eval's `default`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

_WORD_OR_PHRASE = "\nAnswer the question using a single word or phrase."
_LETTER = "\nAnswer with the option's letter from the given choices directly."


@dataclass(frozen=True)
class Question:
    """A question of a benchmark.

    Attributes:
        id: of the row; rows without one are counted.
        kind: group for scores by kind.
        text: the question, without the text that every prompt ends with.
        answers: every accepted answer.
        metric: name in `hvlc.evaluation.benchmarks.scores.METRICS`.
        image: its bytes, or the names under which its file may lie beside the JSON file.
    """

    id: str
    kind: str
    text: str
    answers: tuple[str, ...]
    metric: str
    image: bytes | tuple[str, ...]


@dataclass(frozen=True)
class Benchmark:
    """A public benchmark.

    Attributes:
        title: as it is published.
        metric: by which it is reported, of all its questions or most.
        splits: beginnings of the names of Parquet files with answers, the one that is reported first.
        files: patterns of JSON files, the one that is reported first.
        suffix: text that ends every prompt.
        new_tokens: bound of an answer, as it is usually asked.
        question: makes a question of a row.
    """

    title: str
    metric: str
    splits: tuple[str, ...]
    files: tuple[str, ...]
    suffix: str
    new_tokens: int
    question: Callable[[Row], Question]


def _docvqa(row: Row) -> Question:
    kinds = row.get("question_types") or ["other"]
    image = _image(row, str(row.get("image")))
    return Question(str(row["questionId"]), str(kinds[0]), row["question"], _texts(row["answers"]), "anls", image)


def _chartqa(row: Row) -> Question:
    """Rows of the original files (`query`, `label`, `imgname`), or of the two data sets that are made of them."""
    text, answer = row.get("query", row.get("question")), row.get("label", row.get("answer"))
    said = row.get("type", row.get("human_or_machine", "other"))
    kind = {0: "human", 1: "augmented", "human_test": "human", "augmented_test": "augmented"}.get(said, str(said))
    name = str(row.get("imgname"))
    return Question("", kind, str(text), _texts(answer), "relaxed_accuracy", _image(row, f"png/{name}", name))


def _textvqa(row: Row) -> Question:
    name = f"{row.get('image_id')}.jpg"
    folders = ("train_images", "test_images", "images")
    image = _image(row, *(f"{folder}/{name}" for folder in folders), name)
    text = str(row["question"]).capitalize()
    return Question(str(row["question_id"]), "other", text, _texts(row["answers"]), "vqa_accuracy", image)


def _ocrbench(row: Row) -> Question:
    """Rows of OCRBench.json (`dataset_name`, `type`, `answers`), or of the data set that is made of it."""
    source = str(row.get("dataset_name", row.get("dataset")))
    kind, answers = row.get("type", row.get("question_type")), row.get("answers", row.get("answer"))
    metric = "contains_formula" if source == "HME100k" else "contains"
    name = str(row.get("image_path"))
    image = _image(row, name, f"OCRBench_Images/{name}")
    return Question(str(row.get("id", "")), str(kind), str(row["question"]).strip(), _texts(answers), metric, image)


def _ai2d(row: Row) -> Question:
    options = [str(option) for option in row["options"]]
    if not 0 <= (right := int(row["answer"])) < len(options) <= 26:
        raise ValueError(f"answer {right} of {len(options)} options")
    letters = [chr(ord("A") + number) for number in range(len(options))]
    shown = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    text = f"{row['question']}\n{shown}"
    name = str(row.get("imageName", row.get("image")))
    return Question("", "other", text, (letters[right],), "choice", _image(row, name, f"images/{name}"))


def _texts(found: Any) -> tuple[str, ...]:
    """Answers of a row, of which some have one text in the place of a list."""
    listed = [found] if isinstance(found, str | int | float) else list(found or ())
    texts = tuple(str(text) for text in listed if str(text).strip())
    if not texts:
        raise ValueError("it has no answer: take a split whose answers are published")
    return texts


def _image(row: Row, *names: str) -> bytes | tuple[str, ...]:
    """Bytes of a row of a data set, or names of files beside a JSON file."""
    found = row.get("image")
    if isinstance(found, bytes):
        return found
    if isinstance(found, Mapping):
        data = found.get("bytes")
        if not isinstance(data, bytes):
            raise ValueError("its image has no bytes")
        return data
    return names


#: By the name of the task.
BENCHMARKS: Mapping[str, Benchmark] = {
    "docvqa": Benchmark("DocVQA", "anls", ("validation", "val"), ("val*.json",), _WORD_OR_PHRASE, 32, _docvqa),
    "chartqa": Benchmark(
        "ChartQA",
        "relaxed_accuracy",
        ("test", "val"),
        ("test_human.json", "test_augmented.json", "test*.json", "val*.json"),
        "\nAnswer the question with a single word.",
        16,
        _chartqa,
    ),
    "textvqa": Benchmark(
        "TextVQA",
        "vqa_accuracy",
        ("validation", "val"),
        ("TextVQA*val*.json", "*val*.json"),
        _WORD_OR_PHRASE,
        32,
        _textvqa,
    ),
    "ocrbench": Benchmark("OCRBench", "contains", ("test",), ("OCRBench*.json", "FullTest*.json"), "", 128, _ocrbench),
    "ai2d": Benchmark("AI2D", "choice", ("test",), ("test*.json", "ai2d*.json"), _LETTER, 16, _ai2d),
}
