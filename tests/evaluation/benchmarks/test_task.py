"""Public benchmarks are read in the layouts in which they are published, and scored by their own metrics."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import parquet

from hvlc.errors import UserError
from hvlc.evaluation.benchmarks.published import BENCHMARKS
from hvlc.evaluation.benchmarks.writing import WRITABLE, write_json, write_parquet
from hvlc.evaluation.documents import DocumentsTask
from hvlc.evaluation.tasks import open_task, usual_new_tokens

COUNT = 5


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (level, level, level)).save(buffer, "png")
    return buffer.getvalue()


#: A row as each is published: of the original files, and of the data set made of them.
PUBLISHED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "docvqa": (
        {
            "questionId": 337,
            "question_types": ["handwritten", "form"],
            "image": "documents/xnbl0037_1.png",
            "docId": 279,
        },
        {"questionId": "337", "question_types": ["handwritten", "form"], "docId": 279},
    ),
    "chartqa": (
        {"imgname": "41699051005347.png", "query": "How many bars?", "label": "3"},
        {"type": "human_test", "question": "How many bars?", "answer": "3"},
    ),
    "textvqa": (
        {"question": "what brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602},
        {"question": "what brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602},
    ),
    "ocrbench": (
        {"dataset_name": "IIIT5K", "id": 0, "answers": "CENTRE", "image_path": "IIIT5K/1.png", "type": "Regular Text"},
        {"dataset": "HME100k", "question": "which formula?", "question_type": "Handwritten", "answer": ["x ^ 2"]},
    ),
    "ai2d": (
        {"question": "Which eats grass?", "options": ["hawk", "rabbit"], "answer": 1, "imageName": "12.png"},
        {"question": "Which eats grass?", "options": ["hawk", "rabbit"], "answer": "1"},
    ),
}
for _original, _data_set in PUBLISHED.values():
    _data_set["image"] = {"bytes": png(1), "path": None}
for _row in PUBLISHED["docvqa"]:
    _row |= {"question": "what is the date?", "answers": ["1/8/93"]}
for _row in PUBLISHED["textvqa"]:
    _row["answers"] = ["nous les gosses"] * 10
PUBLISHED["ocrbench"][0]["question"] = "what is written?"
PLACES = {
    "docvqa": ("val_v1.0.json", "documents/xnbl0037_1.png"),
    "chartqa": ("test_human.json", "png/41699051005347.png"),
    "textvqa": ("TextVQA_0.5.1_val.json", "train_images/003a8ae2ef43b901.jpg"),
    "ocrbench": ("OCRBench.json", "OCRBench_Images/IIIT5K/1.png"),
    "ai2d": ("test.json", "images/12.png"),
}


def published(name: str, directory: Path) -> None:
    """Write a row of the original files, with its image where it is published."""
    file, image = PLACES[name]
    (directory / image).parent.mkdir(parents=True)
    Image.new("RGB", (8, 6), (1, 1, 1)).save(directory / image)
    rows = [PUBLISHED[name][0]]
    nested = {"dataset_name": name, "data": rows} if name in ("docvqa", "textvqa") else rows
    (directory / file).write_text(json.dumps(nested))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_original_files_are_read(name: str, tmp_path: Path) -> None:
    published(name, tmp_path)
    task = open_task(f"{name}:{tmp_path}")
    example = task.example(0)
    assert len(task) == 1
    assert example.images[0].size == (8, 6)
    assert example.metric == BENCHMARKS[name].metric
    assert example.question.endswith(BENCHMARKS[name].suffix)
    assert usual_new_tokens(task) == BENCHMARKS[name].new_tokens


@pytest.mark.parametrize("name", BENCHMARKS)
def test_data_sets_are_read(name: str, tmp_path: Path) -> None:
    split = BENCHMARKS[name].splits[0]
    (tmp_path / "data").mkdir()
    parquet.write_table(
        pyarrow.Table.from_pylist([PUBLISHED[name][1]] * 3), tmp_path / "data" / f"{split}-0.parquet", row_group_size=2
    )
    parquet.write_table(pyarrow.table({"other": [1]}), tmp_path / "data" / "train-0.parquet")
    task = open_task(f"{name}:{tmp_path}", suffix="")
    assert len(task) == 3
    assert [task.example(index).images[0].getpixel((0, 0)) for index in (2, 0, 1)] == [(1, 1, 1)] * 3
    assert len({task.example(index).id for index in range(3)}) == 3


def test_prompts_and_answers_are_those_of_the_harness(tmp_path: Path) -> None:
    for name in BENCHMARKS:
        (tmp_path / name).mkdir()
        published(name, tmp_path / name)
    found = {name: open_task(f"{name}:{tmp_path / name}").example(0) for name in BENCHMARKS}
    asked = {name: example.question for name, example in found.items()}
    assert asked["docvqa"] == "what is the date?\nAnswer the question using a single word or phrase."
    assert asked["chartqa"] == "How many bars?\nAnswer the question with a single word."
    assert asked["textvqa"] == "What brand?\nAnswer the question using a single word or phrase."
    assert asked["ocrbench"] == "what is written?"
    letters = "A. hawk\nB. rabbit\nAnswer with the option's letter from the given choices directly."
    assert asked["ai2d"] == f"Which eats grass?\n{letters}"
    assert found["ai2d"].answers == ("B",)
    assert len(found["textvqa"].answers) == 10
    assert found["ocrbench"].answers == ("CENTRE",)
    assert found["docvqa"].kind == "handwritten"


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("write", [write_json, write_parquet])
def test_documents_come_back_as_they_were_written(name: str, write: Any, tmp_path: Path) -> None:
    documents = DocumentsTask(COUNT)
    write(name, documents, tmp_path, COUNT)
    task = open_task(f"{name}:{tmp_path}", suffix="")
    assert len(task) == COUNT
    for index in range(COUNT):
        read, drawn = task.example(index), documents.example(index)
        question = drawn.question.capitalize() if name == "textvqa" else drawn.question
        assert (read.question, set(read.answers)) == (question, set(drawn.answers))
        gap = np.abs(np.asarray(read.images[0], int) - np.asarray(drawn.images[0], int)).max()
        assert gap <= (12 if name == "textvqa" and write is write_json else 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot read"),
        ('{"data": {}}', "not a list"),
        ("[]", "not a list"),
        ("[1]", "not a list"),
        ('[{"question": "?"}]', "questionId"),
        ('[{"questionId": 1, "question": "?", "image": "a.png", "answers": []}]', "no answer"),
        ('[{"questionId": 1, "question": "?", "image": "a.png", "answers": [" "]}]', "no answer"),
        ('[{"questionId": 1, "question": "?", "image": "a.png", "answers": null}]', "no answer"),
    ],
)
def test_a_wrong_file_stops_before_the_work(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "val.json").write_text(content)
    with pytest.raises(UserError, match=said) as refused:
        open_task(f"docvqa:{tmp_path}")
    assert refused.value.code == "task.benchmark"


@pytest.mark.parametrize("image", ["../secret.png", "/etc/passwd", "missing.png", "bad.png"])
def test_images_lie_beside_the_file(image: str, tmp_path: Path) -> None:
    inside = tmp_path / "set"
    inside.mkdir()
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (inside / "bad.png").write_bytes(b"no image")
    row = {"questionId": 1, "question": "?", "image": image, "answers": ["x"]}
    (inside / "val.json").write_text(json.dumps([row]))
    task = open_task(f"docvqa:{inside}")
    with pytest.raises(UserError, match="row 0 of DocVQA") as refused:
        task.example(0)
    assert refused.value.code == "task.benchmark"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for place, said in ((tmp_path / "none", "not a file or directory"), (tmp_path, "has no Parquet file")):
        with pytest.raises(UserError, match=said):
            open_task(f"docvqa:{place}")
    with pytest.raises(UserError, match="docvqa:DIRECTORY"):
        open_task("docvq:somewhere")


@pytest.mark.parametrize("name", WRITABLE)
def test_parquet_files_say_which_column_holds_images(name: str, tmp_path: Path) -> None:
    file = write_parquet(name, DocumentsTask(2), tmp_path, 2)
    schema = parquet.read_schema(file)
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["image"] == {"_type": "Image"}
    assert features["question"] == {"dtype": "string", "_type": "Value"}
    if name == "docvqa":
        assert features["questionId"] == {"dtype": "int64", "_type": "Value"}
        assert features["answers"] == {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"}


def test_a_damaged_parquet_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "validation-0.parquet").write_bytes(b"PAR1" + b"\0" * 40 + b"PAR1")
    with pytest.raises(UserError, match="cannot read") as refused:
        open_task(f"docvqa:{tmp_path}")
    assert refused.value.code == "task.benchmark"


def test_an_evaluation_has_the_benchmarks_score(tmp_path: Path, tiny_float32: Path, hvlc) -> None:
    assert hvlc("tasks", "write", "docvqa", "-o", tmp_path / "zoo", "-n", 3).code == 0
    found = hvlc(
        "eval",
        tiny_float32,
        "--task",
        f"docvqa:{tmp_path / 'zoo'}",
        "--encoder",
        "base",
        "--json",
        "-o",
        tmp_path / "report",
    )
    assert found.code == 0, found.err
    (record,) = found.json
    assert record["summary"]["score"]["value"] == record["summary"]["anls"]["value"]
    assert record["max_new_tokens"] == BENCHMARKS["docvqa"].new_tokens
    gated = hvlc(
        "eval", tiny_float32, "--task", f"docvqa:{tmp_path / 'zoo'}", "--encoder", "base", "--gate", "score >= 0.5"
    )
    assert "score" in gated.out + gated.err


def test_lines_of_ones_own_may_name_a_metric(tmp_path: Path) -> None:
    line = {"question": "How many?", "answers": ["100"], "metric": "relaxed_accuracy"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(line))
    assert open_task(str(tmp_path / "mine.jsonl")).example(0).metric == "relaxed_accuracy"
    (tmp_path / "mine.jsonl").write_text(json.dumps(line | {"metric": "relaxed_acuracy"}))
    with pytest.raises(UserError, match="relaxed_accuracy"):
        open_task(str(tmp_path / "mine.jsonl"))
