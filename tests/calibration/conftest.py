"""Checkpoints whose tokenizers are known, and what `open_set` is told of them."""

from pathlib import Path

import pytest

from hvlc.calibration.sources import Model
from hvlc.graphs.facts import Facts, Kind
from hvlc.training.tokenizer import build_nano_tokenizer, special_token_id
from tests.helpers.facts import facts_of, text_facts

END = special_token_id("<|im_end|>")
SEES = facts_of(Kind.VISION_LANGUAGE)
READS = Facts(text=text_facts(eos_token_id=[256, END]))
LOOKS = facts_of(Kind.VISION)


@pytest.fixture(scope="session")
def tokenizer_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte is a token; read only."""
    directory = tmp_path_factory.mktemp("tokenizer") / "checkpoint"
    build_nano_tokenizer().save_pretrained(directory)
    return directory


@pytest.fixture
def seeing(tokenizer_files: Path) -> Model:
    return Model(tokenizer_files, SEES)


@pytest.fixture
def reading(tokenizer_files: Path) -> Model:
    return Model(tokenizer_files, READS)


@pytest.fixture
def looking(tmp_path: Path) -> Model:
    """An encoder alone: it has no tokenizer."""
    return Model(tmp_path / "nothing", LOOKS)
