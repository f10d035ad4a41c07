"""Documents in the layouts of public benchmarks, so that the whole way from files to a score can be tried here."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from hvlc.errors import UserError
from hvlc.evaluation.task import Example, Task

_GROUP = 64  # rows of a group


def _docvqa(number: int, example: Example, image: Any) -> dict[str, Any]:
    kinds, page = (
        [example.kind],
        {"docId": number, "ucsf_document_id": f"zoo{number:05d}", "ucsf_document_page_no": "1"},
    )
    asked = {"questionId": number, "question": example.question, "question_types": kinds, "image": image}
    return {**asked, **page, "answers": list(example.answers), "data_split": "val"}


def _chartqa(number: int, example: Example, image: Any) -> dict[str, Any]:
    asked = {"type": "human_test", "question": example.question, "answer": example.answers[0]}
    return {**asked, "image": image, "imgname": image, "query": example.question, "label": example.answers[0]}


def _textvqa(number: int, example: Example, image: Any) -> dict[str, Any]:
    ten = [example.answers[k % len(example.answers)] for k in range(10)]
    return {
        "question_id": number,
        "question": example.question,
        "image_id": f"{number:05d}",
        "image": image,
        "answers": ten,
    }


def _ocrbench(number: int, example: Example, image: Any) -> dict[str, Any]:
    source = {"dataset_name": "zoo", "dataset": "zoo", "id": number}
    kind = {"type": "Doc-oriented VQA", "question_type": "Doc-oriented VQA"}
    said = {"question": example.question, "answers": list(example.answers), "answer": list(example.answers)}
    return {**source, **kind, **said, "image_path": image, "image": image}


_ROWS: Mapping[str, Callable[[int, Example, Any], dict[str, Any]]] = {
    "docvqa": _docvqa,
    "chartqa": _chartqa,
    "textvqa": _textvqa,
    "ocrbench": _ocrbench,
}
#: Names of the files: of Parquet, of JSON, and of an image beside it.
_FILES = {
    "docvqa": ("validation-00000-of-00001.parquet", "val_v1.0.json", "documents/{:05d}.png"),
    "chartqa": ("test-00000-of-00001.parquet", "test_human.json", "png/{:05d}.png"),
    "textvqa": ("validation-00000-of-00001.parquet", "TextVQA_0.5.1_val.json", "train_images/{:05d}.jpg"),
    "ocrbench": ("test-00000-of-00001.parquet", "OCRBench.json", "OCRBench_Images/{:05d}.png"),
}
#: Layouts that can be written; documents have no options to choose from, so AI2D's is not among them.
WRITABLE = tuple(_ROWS)


def write_json(name: str, task: Task, directory: Path, count: int) -> Path:
    """Write questions of a task as the JSON file of a benchmark, with images beside it.

    Args:
        name: of the benchmark, in `WRITABLE`.
        task: its questions have one image each.
        directory: that is there already.
        count: of questions.

    Returns:
        The JSON file.
    """
    _, file, pattern = _FILES[name]
    rows = []
    for number, example in _examples(task, count):
        place = directory / pattern.format(number)
        place.parent.mkdir(exist_ok=True)
        # Of JPEG, which TextVQA's layout wants, the quality that changes pixels least; PNG has none.
        example.images[0].save(place, quality=100, subsampling=0)
        shown = place.name if name in ("chartqa", "ocrbench") else pattern.format(number)
        row = _ROWS[name](number, example, shown)
        rows.append({key: value for key, value in row.items() if key != "image" or name == "docvqa"})
    data: Any = (
        rows if name in ("chartqa", "ocrbench") else {"dataset_name": name, "dataset_split": "val", "data": rows}
    )
    (directory / file).write_text(json.dumps(data, ensure_ascii=False, indent=1), "utf-8")
    return directory / file


def write_parquet(name: str, task: Task, directory: Path, count: int) -> Path:
    """Write questions of a task as the Parquet file of a benchmark, with images inside; see `write_json`.

    Raises:
        UserError: pyarrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        fix = "pip install 'hvlc[benchmarks]'"
        raise UserError("install.benchmarks", "writing Parquet files needs pyarrow", fix) from error
    rows = [_ROWS[name](n, e, {"bytes": _png(e.images[0]), "path": f"{n:05d}.png"}) for n, e in _examples(task, count)]
    named = ("imgname", "image_path", "query", "label")
    kept = [{key: value for key, value in row.items() if key not in named} for row in rows]
    table = pyarrow.Table.from_pylist(kept)
    features = {"info": {"features": {field.name: _feature(field.type) for field in table.schema}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    parquet.write_table(table, directory / _FILES[name][0], row_group_size=_GROUP)
    return directory / _FILES[name][0]


def _feature(kind: Any) -> dict[str, Any]:
    """Feature of a column as the library datasets names it in Parquet files, by which harnesses decode images.

    Args:
        kind: pyarrow's type; a struct is an image.
    """
    from pyarrow import types

    if types.is_struct(kind):
        return {"_type": "Image"}
    if types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "Sequence"}
    return {"dtype": str(kind), "_type": "Value"}


def _examples(task: Task, count: int) -> Iterator[tuple[int, Example]]:
    for number in range(count):
        yield number, task.example(number)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return buffer.getvalue()
