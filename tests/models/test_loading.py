"""References are loaded by transformers after a look at their configuration, and what it raises is one error."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.export.references import checkpoint_tracer, vision_language_checkpoint
from hvlc.models.loading import loading
from hvlc.models.tracing import LanguageTracer
from tests.export.tiny_families import save_text


def changed(source: Path, target: Path, name: str, **change: Any) -> Path:
    shutil.copytree(source, target)
    content = json.loads((target / name).read_text("utf-8"))
    (target / name).write_text(json.dumps(content | change), "utf-8")
    return target


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("llama") / "checkpoint", "llama")


def test_a_number_outside_its_bounds_is_refused_before_transformers_counts_to_it(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="num_hidden_layers") as error:
        LanguageTracer(changed(llama, tmp_path / "c", "config.json", num_hidden_layers=2**40))
    assert error.value.code == "checkpoint.config"


def test_so_is_code(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        LanguageTracer(changed(llama, tmp_path / "c", "config.json", auto_map={"AutoConfig": "evil.Evil"}))
    assert error.value.code == "checkpoint.code"


@pytest.mark.parametrize(
    ("part", "tokenizer"), [("model", "{}"), *(("tokenizer", text) for text in ("[]", "{}", '{"model": 1', "", "\0"))]
)
def test_what_transformers_raises_is_an_error_of_the_checkpoint(
    llama: Path, tmp_path: Path, part: str, tokenizer: str
) -> None:
    directory = changed(llama, tmp_path / "c", "config.json", hidden_size=32, num_attention_heads=2)
    (directory / "tokenizer.json").write_text(tokenizer, "utf-8")
    with pytest.raises(UserError, match="transformers cannot load") as error:
        getattr(LanguageTracer(directory), part)
    assert error.value.code == "checkpoint.config"


@pytest.mark.parametrize("opened", [vision_language_checkpoint, checkpoint_tracer])
def test_a_hypervl_is_looked_at_too(tiny_checkpoint: Path, tmp_path: Path, opened: Any) -> None:
    with pytest.raises(UserError, match="shuffle_factor") as error:
        opened(changed(tiny_checkpoint, tmp_path / "c", "config.json", shuffle_factor=0))
    assert error.value.code == "checkpoint.config"


def test_errors_of_our_own_pass_through() -> None:
    with pytest.raises(UserError, match="mine"), loading(Path("checkpoint")):
        raise UserError("a.b", "mine", "fix")
    with pytest.raises(KeyboardInterrupt), loading(Path("checkpoint")):
        raise KeyboardInterrupt
