"""The functions of `import hvlc`: the command line's own, typed, and nothing heavy before one is called."""

import subprocess
import sys
from pathlib import Path

import pytest

import hvlc as door
from hvlc.cli.streams import printable
from hvlc.errors import UserError
from tests.helpers.commands import Hvlc
from tests.helpers.tiny import picture


def test_import_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'onnx', 'onnx_ir', 'onnxruntime', 'numpy', 'pydantic', 'click', 'PIL'}"
    found = subprocess.run(
        [sys.executable, "-c", f"import hvlc, sys; print(sorted({heavy} & set(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "[]"


def test_a_build_is_that_of_the_command(tiny_checkpoint: Path, tiny_float32: Path, tmp_path: Path) -> None:
    made = door.build(tiny_checkpoint, tmp_path / "package", recipe="float32", threads=1)
    assert made.manifest.files == door.open(tiny_float32).manifest.files
    with pytest.raises(UserError, match="exists"):
        door.build(tiny_checkpoint, tmp_path / "package", recipe="float32")


def test_an_answer_is_that_of_the_command(tiny_float32: Path, tmp_path: Path, hvlc: Hvlc) -> None:
    picture(40, 30).save(tmp_path / "page.png")
    package = door.open(str(tiny_float32))
    images = (tmp_path / "page.png", picture(40, 30))
    answers = [package.ask("What?", images=[image], max_new_tokens=3) for image in images]
    out = hvlc("run", tiny_float32, "--image", images[0], "--prompt", "What?", "--max-new-tokens", 3).out
    assert [printable(answer.text) for answer in answers] == [out.removesuffix("\n")] * 2
    assert answers[0].visual_tokens > 0


def test_a_chat_is_that_of_the_command(tiny_float32: Path, tmp_path: Path, hvlc: Hvlc) -> None:
    picture(40, 30).save(tmp_path / "page.png")
    chat = door.open(tiny_float32).chat([tmp_path / "page.png"], room=200)
    with pytest.raises(UserError, match="max_new_tokens"):
        chat.ask("What?", max_new_tokens=0)
    answers = [chat.ask(question, max_new_tokens=3) for question in ("What?", "Why?", "Who?")]
    asked = ["run", tiny_float32, "--image", tmp_path / "page.png", "--max-new-tokens", 3, "--prompt", "What?"]
    asked += ["--then", "Why?", "--then", "Who?"]
    times = {"time_to_first_token", "decode_seconds"}
    found = [{k: v for k, v in one.items() if k not in times} for one in hvlc(*asked, "--json").json]
    assert found == [answer.model_dump(mode="json", exclude=times) for answer in answers]
    assert hvlc(*asked).out == "".join(f"{printable(answer.text)}\n" for answer in answers)
    assert answers[2].prompt_tokens > answers[1].prompt_tokens > answers[0].prompt_tokens > answers[0].visual_tokens > 0


def test_a_chat_ends_with_its_room(tiny_float32: Path) -> None:
    chat = door.open(tiny_float32).chat(room=40)
    chat.ask("What?", max_new_tokens=3)
    with pytest.raises(UserError, match="room of this chat"):
        chat.ask("Why?", max_new_tokens=40)
    assert chat.ask("Why?", max_new_tokens=3).tokens


def test_an_evaluation_has_model_and_reference(tiny_float32: Path, tiny_w4a16: Path) -> None:
    found = door.evaluate(tiny_w4a16, reference=tiny_float32, encoders=["base"], count=2)
    assert [one.summary.n for one in found.shown] == [2, 2]
    assert found.evaluations[0].agreement is not None


def test_wrong_input_is_the_users_error(tmp_path: Path) -> None:
    for call in (
        lambda: door.open(tmp_path),
        lambda: door.build(tmp_path / "none", tmp_path / "out"),
        lambda: door.evaluate(tmp_path, count=1),
        lambda: door.evaluate(tmp_path, task="nothing"),
    ):
        with pytest.raises(UserError):
            call()
