"""Perplexity of packages against transformers' cross entropy on the same tokens."""

import json
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from hvlc import cli
from hvlc.errors import UserError
from hvlc.evaluation.perplexity import perplexity
from hvlc.pipeline.build import build
from hvlc.pipeline.request import BuildRequest
from hvlc.pipeline.perplexity import measure_perplexities, text_windows
from hvlc.results import Perplexity, ScoredWindow
from hvlc.runtime.logits import TextScorer
from hvlc.zoo.tokenizer import build_nano_tokenizer
from tests.export.tiny_families import CONTEXT, save_text

TEXT = " ".join(f"word {i} and {i * i % 97}" for i in range(400))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("perplexity") / "llama", "llama")


@pytest.fixture(scope="module")
def packages(checkpoint: Path) -> dict[str, Path]:
    recipes = ("float32", "w4a16-rtn")
    return {r: build(BuildRequest(checkpoint, "cpu", r, checkpoint.parent / r)).output for r in recipes}


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "task.txt"
    path.write_text(TEXT, "utf-8")
    return path


def expected(checkpoint: Path, windows: list[np.ndarray]) -> float:
    """`exp` of transformers' own loss, over all predicted tokens."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        losses = [float(model(torch.from_numpy(w)[None], labels=torch.from_numpy(w)[None]).loss) for w in windows]
    return math.exp(np.average(losses, weights=[len(w) - 1 for w in windows]))


def test_it_is_transformers_cross_entropy(checkpoint: Path, packages: dict[str, Path], text: Path) -> None:
    ids = np.array(AutoTokenizer.from_pretrained(checkpoint)(TEXT[(len(TEXT) - 8 * 256) // 2 :]).input_ids)
    windows = [ids[start : start + 64] for start in range(0, 256, 64)]
    (found,) = measure_perplexities([packages["float32"]], text, tokens=256, window=64)
    assert found.value == pytest.approx(expected(checkpoint, windows), rel=1e-4)
    assert (found.tokens, len(found.windows)) == (4 * 63, 4)


def test_a_checkpoint_is_measured_without_quantization(checkpoint: Path, packages: dict[str, Path], text: Path) -> None:
    told: list[tuple[str, int, int]] = []
    found = measure_perplexities(
        [checkpoint, packages["float32"], packages["w4a16-rtn"]],
        text,
        tokens=256,
        window=64,
        progress=lambda *step: told.append(step),
    )
    assert found[0].value == pytest.approx(found[1].value, rel=1e-6)
    assert found[2].value != pytest.approx(found[1].value, rel=1e-4)
    assert told[0] == ("llama", 1, 12)
    assert told[-1] == ("w4a16-rtn", 12, 12)


def test_windows_are_consecutive_and_from_the_middle(packages: dict[str, Path], text: Path) -> None:
    scorer = TextScorer(packages["float32"])
    windows = text_windows(scorer, text, 200, 32)
    assert [w.shape for w in windows] == [(32,)] * 6
    joined = bytes(np.concatenate(windows).astype(np.uint8)).decode()
    assert joined == TEXT[(len(TEXT) - 1600) // 2 :][:192]


def test_every_window_opens_as_a_text_does(tmp_path: Path, text: Path) -> None:
    checkpoint = save_text(tmp_path / "opening", "llama")
    tokenizer = build_nano_tokenizer()
    first = processors.TemplateProcessing("<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)])
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), first])
    tokenizer.save_pretrained(checkpoint)
    scorer = TextScorer(build(BuildRequest(checkpoint, "cpu", "float32", tmp_path / "package")).output)
    windows = text_windows(scorer, text, 200, 32)
    assert [int(w[0]) for w in windows] == [256] * 6
    joined = bytes(np.concatenate([w[1:] for w in windows]).astype(np.uint8)).decode()
    assert joined == TEXT[(len(TEXT) - 1600) // 2 :][: 6 * 31]


def test_the_default_window_is_what_the_model_reads(packages: dict[str, Path], text: Path) -> None:
    (found,) = measure_perplexities([packages["float32"]], text, tokens=3 * CONTEXT)
    assert [w.tokens for w in found.windows] == [CONTEXT - 1] * 3


@pytest.mark.parametrize(
    ("content", "options", "code"),
    [
        (b"\xff\xfe\x00", {}, "task.text"),
        (None, {}, "task.text"),
        (b"short", {"window": 32}, "task.text"),
        (TEXT.encode(), {"window": CONTEXT + 1}, "eval.window"),
        (TEXT.encode(), {"window": 64, "tokens": 32}, "eval.window"),
        (TEXT.encode(), {"window": 1}, "eval.window"),
    ],
    ids=["no UTF-8", "no file", "too short", "beyond the context", "less than a window", "one token"],
)
def test_bad_tasks_have_a_code(
    packages: dict[str, Path], tmp_path: Path, content: bytes | None, options: dict[str, int], code: str
) -> None:
    path = tmp_path / "task.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        measure_perplexities([packages["float32"]], path, **options)
    assert error.value.code == code


def test_a_bad_text_is_found_before_a_reference_is_built(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"task\.text"):
        measure_perplexities([tmp_path / "no checkpoint"], tmp_path / "no text")
    (tmp_path / "text").write_text(TEXT)
    with pytest.raises(UserError, match=r"checkpoint\."):
        measure_perplexities([tmp_path / "no checkpoint"], tmp_path / "text")


def test_models_that_read_other_tokens_are_not_compared(packages: dict[str, Path], text: Path, tmp_path: Path) -> None:
    other = save_text(tmp_path / "other", "llama")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["w"], vocabulary["o"] = vocabulary["o"], vocabulary["w"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError) as error:
        measure_perplexities([packages["float32"], other], text, tokens=64, window=32)
    assert error.value.code == "eval.reference"


def test_packages_that_see_are_refused(tiny_float32: Path, text: Path) -> None:
    with pytest.raises(UserError) as error:
        measure_perplexities([tiny_float32], text)
    assert error.value.code == "package.kind"


def windows(*nll: float, tokens: int = 10) -> Perplexity:
    return Perplexity(windows=tuple(ScoredWindow(nll=v, tokens=tokens) for v in nll))


def test_the_value_weighs_windows_by_their_tokens() -> None:
    parts = (ScoredWindow(nll=1.0, tokens=30), ScoredWindow(nll=2.0, tokens=10))
    found = Perplexity(windows=parts)
    assert found.value == pytest.approx(math.exp(1.25))
    assert found.tokens == 40


def test_the_ratio_has_the_error_of_the_windows_differences() -> None:
    mine, other = windows(1.1, 2.3, 2.9), windows(1.0, 2.0, 3.0)
    quotient, error = mine.ratio(other)
    gaps = np.array([0.1, 0.3, -0.1])
    assert quotient == pytest.approx(math.exp(gaps.mean()))
    assert error == pytest.approx(quotient * np.sqrt(np.square(gaps - gaps.mean()).sum() / 2 / 3))
    assert mine.ratio(mine) == (1.0, 0.0)


def test_one_window_has_no_error() -> None:
    assert windows(1.5).ratio(windows(1.0)) == (pytest.approx(math.exp(0.5)), None)


def test_other_windows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="differ"):
        windows(1.0, 2.0).ratio(windows(1.0))


def test_a_certain_model_has_perplexity_one_and_a_blind_one_that_of_its_vocabulary() -> None:
    ids = np.array([1, 2, 3, 0])
    certain = np.full((4, 5), -1e4, np.float32)
    certain[np.arange(3), ids[1:]] = 1e4
    assert perplexity(lambda _: certain, [ids]).value == pytest.approx(1.0)
    assert perplexity(lambda _: np.zeros((4, 5), np.float32), [ids]).value == pytest.approx(5.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore")
def test_logits_that_are_no_numbers_are_told(value: float) -> None:
    with pytest.raises(UserError) as error:
        perplexity(lambda ids: np.full((4, 5), value, np.float32), [np.array([1, 2, 3, 0])])
    assert error.value.code == "eval.numbers"


# The command line.

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """Exit code, stdout and stderr of `hvlc eval ARGUMENTS`."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            cli.main(["eval", *map(str, arguments)])
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def test_the_command_line_prints_a_ratio(command: Command, packages: dict[str, Path], text: Path) -> None:
    options = ("--task", text, "--tokens", 256, "--window", 64, "--reference", packages["float32"])
    code, out, _ = command(packages["w4a16-rtn"], *options, "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    reference, package = found["float32 (reference)"], found["w4a16-rtn"]
    assert package["ratio"] == pytest.approx(package["perplexity"] / reference["perplexity"])
    assert package["standard_error"] > 0
    assert package["tokens"] == 252
    code, out, _ = command(packages["w4a16-rtn"], *options)
    assert code == 0
    for shown in (f"{package['perplexity']:.4f}", f"{package['ratio']:.4f}", "standard error", "252", "–"):
        assert shown in out


def test_without_a_reference_there_is_no_ratio(command: Command, packages: dict[str, Path], text: Path) -> None:
    code, out, _ = command(packages["float32"], "--task", text, "--tokens", 64, "--window", 64)
    assert code == 0
    assert "perplexity" in out
    assert "ratio" not in out


@pytest.mark.parametrize("option", [("--encoder", "base"), ("-n", 3), ("--no-vrc",), ("-o", "somewhere")])
def test_options_for_images_are_refused(
    command: Command, packages: dict[str, Path], text: Path, option: tuple[object, ...]
) -> None:
    code, out, _ = command(packages["float32"], "--task", text, *option, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "eval.option")


@pytest.mark.parametrize("option", [("--tokens", 64), ("--window", 64)])
def test_options_for_texts_are_refused(command: Command, tiny_float32: Path, option: tuple[object, ...]) -> None:
    code, out, _ = command(tiny_float32, *option, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "eval.option")
