"""A language package continues text as transformers does, with and without a chat template, and refuses images."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from hvlc import cli
from hvlc.chat import renderer
from hvlc.cli.streams import printable
from hvlc.errors import UserError
from hvlc.package.text import PackageText, copy_tokenizer
from hvlc.runtime.generation import LanguageModel, VisionLanguageModel, open_model
from hvlc.training.tokenizer import CHAT_TEMPLATE, build_nano_tokenizer
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import CONTEXT, save_text, save_vision
from tests.helpers.packages import changed_json
from tests.helpers.tiny import picture


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("language") / "checkpoint", "llama")


@pytest.fixture(scope="module")
def language(checkpoint: Path) -> Path:
    """A language package; read only."""
    return build(open_request(checkpoint, "cpu", "float32", checkpoint.parent / "language")).output


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vision package; read only."""
    root = tmp_path_factory.mktemp("vision")
    saved = save_vision(root / "checkpoint", "siglip_vision_model", vision_use_head=False)
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5] * 3, "rescale_factor": 1 / 255, "resample": 3}
    (saved / "preprocessor_config.json").write_text(json.dumps(settings), "utf-8")
    return build(open_request(saved, "cpu", "float32", root / "package")).output


def opening(kind: str) -> Callable[[Any], None]:
    """A change of a tokenizer that puts a token before every text."""

    def change(tokenizer: Any) -> None:
        first = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)])
        parts = [processors.ByteLevel(trim_offsets=False), first]
        tokenizer.backend_tokenizer.post_processor = processors.Sequence(parts) if kind == "sequence" else first

    return change


PLAIN: dict[str, Callable[[Any], None]] = {
    "no opening token": lambda tokenizer: None,
    "an opening token": opening("template"),
    "an opening token after bytes": opening("sequence"),
}


@pytest.mark.parametrize("case", PLAIN)
@torch.no_grad()
def test_without_a_template_the_prompt_goes_on_as_it_is(
    language: Path, checkpoint: Path, tmp_path: Path, case: str
) -> None:
    copied = shutil.copytree(language, tmp_path / "package")
    tokenizer = build_nano_tokenizer()
    tokenizer.chat_template = None
    PLAIN[case](tokenizer)
    (copied / "chat_template.jinja").unlink()
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    copy_tokenizer(tmp_path / "tokenizer", copied, PackageText())
    inputs = AutoTokenizer.from_pretrained(copied, local_files_only=True)("Once", return_tensors="pt")
    length = inputs["input_ids"].shape[1]
    assert length == 4 + (case != "no opening token")
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, length:].tolist()
    package = LanguageModel(copied, verify=False)
    assert list(package.answer("Once", [], encoder="auto", vrc=True, max_new_tokens=8).tokens) == expected
    if case == "no opening token":
        with pytest.raises(UserError) as error:
            package.start("")
        assert error.value.code == "request.empty"


def test_a_template_inside_the_tokenizer_configuration_is_used(language: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(language, tmp_path / "package")
    (copied / "chat_template.jinja").unlink()
    config = json.loads((copied / "tokenizer_config.json").read_text("utf-8"))
    (copied / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": CHAT_TEMPLATE}), "utf-8")
    ids = [LanguageModel(p, verify=False).prompt_ids("What?").tolist() for p in (copied, language)]
    assert ids[0] == ids[1]
    assert len(ids[0]) == len("What?") + 3


def test_a_template_that_cannot_be_rendered_says_so(language: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(language, tmp_path / "package")
    (copied / "chat_template.jinja").write_text("{% for m in messages %}{{ m.nothing.of.it | unknown }}", "utf-8")
    with pytest.raises(UserError) as error:
        LanguageModel(copied, verify=False).start("What?")
    assert error.value.code == "package.template"


#: What ends the runtime's process, or never ends in it.
WITHOUT_BOUND = {
    "a macro that calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a macro that calls itself for a prompt": (
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{% if messages[0].content == 'What?' %}{{ f(1) }}{% endif %}"
    ),
    "a loop without end": "{% for a in range(99999999) %}{% for b in range(99999999) %}{% endfor %}{% endfor %}",
    "a string that doubles": (
        "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}"
    ),
    "a deep comment": "{# " + "x" * 900_000 + " #}",
}


@pytest.mark.parametrize("case", WITHOUT_BOUND)
def test_a_template_without_bound_ends_no_command(language: Path, tmp_path: Path, case: str) -> None:
    copied = shutil.copytree(language, tmp_path / "package")
    (copied / "chat_template.jinja").write_text(WITHOUT_BOUND[case], "utf-8")
    started = time.monotonic()
    with pytest.raises(UserError) as error:
        LanguageModel(copied, verify=False).start("What?")
    assert error.value.code in ("package.template", "package.tokenizer")
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("prompt", ["before\0after", "\0", "half \ud83d"])
def test_a_prompt_that_the_runtime_would_cut_is_refused(language: Path, prompt: str) -> None:
    with pytest.raises(UserError) as error:
        LanguageModel(language).start(prompt)
    assert error.value.code == "request.text"


def test_a_token_that_the_model_has_no_row_for_is_not_fed(language: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(language, tmp_path / "package")
    content = json.loads((copied / "tokenizer.json").read_text("utf-8"))
    content["added_tokens"].append(content["added_tokens"][0] | {"id": 40_000, "content": "[PAD]"})
    (copied / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError) as error:
        LanguageModel(copied, verify=False).start("a [PAD] b")
    assert error.value.code == "package.tokenizer"
    assert "40000" in error.value.cause


def test_a_package_puts_texts_into_the_form_that_it_names(language: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(language, tmp_path / "package")
    manifest = json.loads((copied / "hvlc.json").read_text("utf-8"))
    assert "text" not in manifest
    (copied / "hvlc.json").write_text(json.dumps(manifest | {"text": {"normalization": "NFC"}}), "utf-8")
    ids = [LanguageModel(p, verify=False).prompt_ids("cafe\u0301").tolist() for p in (copied, language)]
    assert ids[0] == LanguageModel(language).prompt_ids("caf\u00e9").tolist() != ids[1]


def test_a_tokenizer_that_cannot_be_read_says_so(language: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(language, tmp_path / "package")
    (copied / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": None}), "utf-8")
    with pytest.raises(UserError) as error:
        LanguageModel(copied, verify=False)
    assert error.value.code == "package.tokenizer"


def test_a_tokenizer_that_never_ends_ends_no_command(
    language: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nested repetition takes twice as long with every letter."""
    copied = shutil.copytree(language, tmp_path / "package")
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    changed_json(copied / "tokenizer.json", lambda content: content.update(pre_tokenizer=split))
    monkeypatch.setattr(renderer, "_ENCODE_SECONDS", 1.0)
    with pytest.raises(UserError, match="did not end") as error:
        LanguageModel(copied, verify=False).prompt_ids("a" * 40 + "!")
    assert error.value.code == "package.tokenizer"


def test_the_stream_adds_up_to_the_answer(language: Path) -> None:
    generation = LanguageModel(language).start("What?", max_new_tokens=8)
    pieces = list(generation)
    assert "".join(pieces) == generation.answered.text
    assert 1 <= len(generation.answered.tokens) <= 8
    assert (generation.answered.tiles, generation.answered.encoder) == (0, "")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an image": ({"images": [picture(30, 30)]}, "request.image"),
    "an encoder": ({"encoder": "base"}, "request.image"),
    "a bound of visual tokens": ({"max_visual_tokens": 4}, "request.image"),
    "long prompt": ({"prompt": "x" * CONTEXT}, "request.too_long"),
    "long answer": ({"max_new_tokens": CONTEXT}, "request.too_long"),
    "no answer": ({"max_new_tokens": 0}, "request.max_new_tokens"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_request_that_cannot_be_answered_is_refused(language: Path, case: str) -> None:
    change, code = REFUSED[case]
    with pytest.raises(UserError) as error:
        LanguageModel(language).start(**({"prompt": "What?"} | change))
    assert error.value.code == code


def test_a_package_is_opened_as_what_it_is(language: Path, vision: Path, tiny_float32: Path) -> None:
    assert type(open_model(language)) is LanguageModel
    assert type(open_model(tiny_float32)) is VisionLanguageModel
    for opened, package in ((open_model, vision), (VisionLanguageModel, language), (LanguageModel, tiny_float32)):
        with pytest.raises(UserError) as error:
            opened(package)
        assert (error.value.code, error.value.exit_code) == ("package.kind", 2)


def hvlc(*arguments: object) -> int:
    try:
        cli.main([str(a) for a in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


@pytest.mark.parametrize("command", ["run", "eval"])
@pytest.mark.parametrize("package", ["language", "vision"])
def test_the_command_line_says_what_a_kind_is_not_for(
    request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, package: str
) -> None:
    picture(30, 30).save(tmp_path / "image.png")
    asked = ["--prompt", "What?", "--image", tmp_path / "image.png"] if command == "run" else []
    assert hvlc(command, request.getfixturevalue(package), *asked, "--json") == 2
    error = json.loads(capsys.readouterr().out)["error"]
    codes = {("run", "language"): "request.image", ("run", "vision"): "package.kind"}
    assert error["code"] == codes.get((command, package), "eval.kind")
    assert error["fix"]


def test_a_checkpoint_without_eyes_is_not_evaluated(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hvlc("eval", checkpoint, "--json") == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "eval.kind"


@pytest.mark.parametrize("package", ["language", "vision"])
def test_every_kind_is_shown_and_verified(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], package: str
) -> None:
    directory = request.getfixturevalue(package)
    assert hvlc("inspect", directory) == 0
    assert package in capsys.readouterr().out
    assert hvlc("verify", directory) == 0


def test_the_answer_streams_to_the_terminal(language: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert hvlc("run", language, "--prompt", "What?", "--max-new-tokens", "4") == 0
    expected = LanguageModel(language).answer("What?", [], encoder="auto", vrc=True, max_new_tokens=4).text
    assert capsys.readouterr().out == f"{printable(expected)}\n"


def test_neither_torch_nor_transformers_is_imported(language: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from hvlc.runtime.generation import open_model
model = open_model(Path({str(language)!r}))
print(len(model.answer("?", [], encoder="auto", vrc=True, max_new_tokens=2).tokens))
sys.exit(" ".join({{"torch", "transformers", "optimum", "onnx_ir"}} & set(sys.modules)) or 0)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.strip() in ("1", "2")


def test_the_genai_configuration_is_the_proved_one(language: Path) -> None:
    config = json.loads((language / "genai_config.json").read_text("utf-8"))
    assert config["model"] == {
        "type": "llama",
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 256,
        "vocab_size": 264,
        "context_length": CONTEXT,
        "decoder": {
            "filename": "model.onnx",
            "head_size": 16,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
            "inputs": {
                "input_ids": "input_ids",
                "attention_mask": "attention_mask",
                "past_key_names": "past_key_values.%d.key",
                "past_value_names": "past_key_values.%d.value",
            },
            "outputs": {
                "logits": "logits",
                "present_key_names": "present.%d.key",
                "present_value_names": "present.%d.value",
            },
        },
    }
    assert set(config) == {"model", "search", "vlm_manifest"}  # an unknown object at the root is an error there


def test_a_vision_package_says_how_images_become_its_input(vision: Path) -> None:
    manifest = json.loads((vision / "hvlc.json").read_text("utf-8"))
    assert manifest["preprocessing"] == {
        "image_size": 32,
        "patch_size": 8,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": "bicubic",
    }
    assert {p.name for p in vision.iterdir()} == {"hvlc.json", "hvlc.lock.json", "vision.onnx", "vision.onnx.data"}
