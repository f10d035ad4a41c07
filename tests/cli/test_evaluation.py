"""`hvlc eval` on the command line."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from hvlc.evaluation.documents import DocumentsTask
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.workflows.evaluate.evaluate import Setting, evaluate_directory
from hvlc.workflows.evaluate.evaluation_store import Store
from tests.helpers.commands import Hvlc

Command = Callable[..., tuple[int, str, str]]
SHORT = ("-n", 2, "--encoder", "base", "--max-new-tokens", 2)


@pytest.fixture
def command(hvlc: Hvlc) -> Command:
    """Exit code, stdout and stderr of `hvlc eval ARGUMENTS`."""
    return partial(hvlc, "eval")


def test_one_model_is_a_table_with_every_interval(command: Command, tiny_w4a16: Path) -> None:
    code, out, _ = command(tiny_w4a16, *SHORT)
    assert code == 0
    for shown in ("exact match", "ANLS", "generated tokens", "p95 TTFT", "(~", "bits/weight", "onnxruntime CPU"):
        assert shown in out


def test_json_has_the_records_without_their_examples(command: Command, tiny_w4a16: Path, tiny_float32: Path) -> None:
    code, out, _ = command(tiny_w4a16, *SHORT, "--reference", tiny_float32, "--json")
    assert code == 0
    reference, package = json.loads(out)
    assert (reference["name"], package["name"]) == ("float32", "w4a16-rtn")
    assert package["agreement"]["reference"] == package["fidelity"]["reference"] == "float32 · base · VRC"
    assert "examples" not in package
    assert "sequences" not in package["fidelity"]
    code, out, _ = command(tiny_w4a16, *SHORT, "--reference", tiny_float32, "--no-fidelity", "--json")
    assert json.loads(out)[1]["fidelity"] is None


def test_it_says_where_it_goes_on(
    command: Command, tiny_w4a16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        original, left = VisionLanguageModel.answer, iter([True])

        def once(self, *asked, **how):
            if not next(left, False):
                raise KeyboardInterrupt
            return original(self, *asked, **how)

        patch.setattr(VisionLanguageModel, "answer", once)
        code, _, told = command(tiny_w4a16, *SHORT, "-o", tmp_path)
        assert code == 130
    code, _, told = command(tiny_w4a16, *SHORT, "-o", tmp_path)
    assert code == 0
    assert "w4a16-rtn · base · VRC: goes on after 1 of 2" in told
    assert not list(tmp_path.glob("*.jsonl"))
    code, _, told = command(tiny_w4a16, *SHORT, "-o", tmp_path)
    assert "goes on" not in told


def test_reuse_asks_nothing(
    command: Command, tiny_w4a16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path) as store:
        evaluate_directory(tiny_w4a16, DocumentsTask(2), [Setting("base", True)], max_new_tokens=2, store=store)
    monkeypatch.setattr(VisionLanguageModel, "answer", lambda *_, **__: pytest.fail("a question was asked"))
    code, out, _ = command(tiny_w4a16, *SHORT, "-o", tmp_path, "--reuse", "--json")
    assert code == 0
    assert json.loads(out)[0]["summary"]["n"] == 2


def test_a_task_of_lines_with_and_without_images(command: Command, tiny_w4a16: Path, tmp_path: Path) -> None:
    for name, shade in (("a", 9), ("b", 90)):
        Image.new("RGB", (40, 30), (shade, 0, 0)).save(tmp_path / f"{name}.png")
    lines = [
        {"image": "a.png", "question": "Total?", "answers": ["1"], "kind": "one"},
        {"images": ["a.png", "b.png"], "question": "Same?", "answers": ["no"], "kind": "two"},
        {"question": "Why?", "answers": ["so"], "kind": "none"},
    ]
    task = tmp_path / "mixed.jsonl"
    task.write_text("\n".join(json.dumps(line) for line in lines))
    options = ("--task", task, "--encoder", "base", "--max-new-tokens", 2, "-o", tmp_path / "out")
    code, out, _ = command(tiny_w4a16, *options, "--json")
    assert code == 0
    assert set(json.loads(out)[0]["summary"]["exact_match_by_kind"]) == {"one", "two", "none"}
    assert (tmp_path / "out" / "report.html").read_text("utf-8").count("<img") == 2


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--no-fidelity",), "eval.option"),
        (("--reuse",), "eval.option"),
        (("--encoder", "huge"), "request.encoder"),
        (("--task", "receipts"), "task.unknown"),
        (("--task", "none.jsonl"), "task.unreadable"),
        (("--task", "none.txt"), "task.text"),
        (("--reference", "/"), "eval.model"),
    ],
)
def test_what_cannot_be_done_has_a_code(
    command: Command, tiny_w4a16: Path, options: tuple[str, ...], code: str
) -> None:
    exit_code, out, _ = command(tiny_w4a16, *options, "--json")
    assert (exit_code, json.loads(out)["error"]["code"]) == (2, code)
