"""Perplexity of packages against transformers' cross entropy on the same tokens."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import processors
from transformers import AutoModelForCausalLM, AutoTokenizer

from hvlc.errors import UserError
from hvlc.evaluation.perplexity import perplexity, with_reading_agreement
from hvlc.results import Perplexity, ScoredWindow, TextEvaluation, read_evaluation
from hvlc.runtime.logits import TextScorer
from hvlc.training.tokenizer import build_nano_tokenizer
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from hvlc.workflows.evaluate.evaluation_store import Store
from hvlc.workflows.evaluate.perplexity import evaluate_texts, measure_perplexities, text_windows
from tests.export.tiny_families import CONTEXT, save_text
from tests.helpers.commands import Hvlc

TEXT = " ".join(f"word {i} and {i * i % 97}" for i in range(400))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("perplexity") / "llama", "llama")


@pytest.fixture(scope="module")
def packages(checkpoint: Path) -> dict[str, Path]:
    recipes = ("float32", "w4a16-rtn")
    return {r: build(open_request(checkpoint, "cpu", r, checkpoint.parent / r)).output for r in recipes}


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
    assert told[0] == ("w4a16-rtn", 1, 12)
    assert told[-1] == ("llama", 12, 12)


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
    scorer = TextScorer(build(open_request(checkpoint, "cpu", "float32", tmp_path / "package")).output)
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
    with pytest.raises(UserError, match=r"eval\.model"):
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
    assert error.value.code == "eval.kind"


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


def held(packages: dict[str, Path], text: Path, recipes: list[str], **options: Any) -> list[TextEvaluation]:
    """Packages against the first of them."""
    how = {"against_first": True, "tokens": 500, "window": 64, **options}
    return evaluate_texts([packages[recipe] for recipe in recipes], text, **how)


def test_a_package_against_itself_shows_nothing(packages: dict[str, Path], text: Path) -> None:
    _, found = held(packages, text, ["w4a16-rtn", "w4a16-rtn"], names=["a", "b"])
    assert found.agreement
    assert found.fidelity
    assert (found.agreement.ratio.low, found.agreement.ratio.high) == (1.0, 1.0)
    assert (found.fidelity.kl.value, found.fidelity.kl.high, found.fidelity.top1.value) == (0.0, 0.0, 1.0)


def test_divergence_is_that_of_the_distributions(packages: dict[str, Path], text: Path) -> None:
    """Against a plain computation in float64 from both models' logits."""
    reference, found = held(packages, text, ["float32", "w4a16-rtn"])
    assert reference.fidelity is None
    scorers = [TextScorer(packages[name]) for name in ("float32", "w4a16-rtn")]
    total = 0.0
    windows = text_windows(scorers[0], text, 500, 64)
    for ids in windows:
        p, q = (
            np.exp(said := s.logits(ids)[:-1].astype(np.float64)) / np.exp(said).sum(-1, keepdims=True) for s in scorers
        )
        total += float(np.sum(p * np.log(p / q)))
    assert found.fidelity
    assert found.fidelity.kl.value == pytest.approx(total / (7 * 63), rel=1e-6)
    assert [sequence.tokens for sequence in found.fidelity.sequences] == [63] * 7


def test_a_record_says_what_was_read_and_how(packages: dict[str, Path], text: Path) -> None:
    (found,) = held(packages, text, ["w4a16-rtn"])
    assert (found.task, found.window, found.tokens, found.perplexity.n) == ("task", 64, 7 * 63, 7)
    assert found.runs_on == "onnxruntime CPU"
    assert found.size_bytes
    assert found.bits_per_weight
    assert {"package", "onnxruntime", "processor"} <= set(found.provenance)
    assert found.perplexity.low < found.perplexity.value < found.perplexity.high
    (other,) = held(packages, text, ["w4a16-rtn"], window=32)
    assert other.text_digest != found.text_digest
    with pytest.raises(UserError, match=r"compare\.unpaired"):
        with_reading_agreement(found, other)


@pytest.mark.parametrize("stop_after", [3, 9, 16])
def test_what_was_stopped_goes_on(
    packages: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """In the package's windows, in the reference's, and between their distributions."""
    names = ["float32", "w4a16-rtn"]
    whole = held(packages, text, names)
    read = 0

    def counting(self: TextScorer, ids: np.ndarray) -> np.ndarray:
        nonlocal read
        if read >= most:
            raise KeyboardInterrupt
        read += 1
        return original(self, ids)

    original, most = TextScorer.logits, stop_after
    monkeypatch.setattr(TextScorer, "logits", counting)
    with pytest.raises(KeyboardInterrupt), Store(tmp_path) as store:
        held(packages, text, names, store=store)
    assert not list(tmp_path.glob("*.json"))
    read, most, told = 0, 1_000, []
    with Store(tmp_path, told.append) as store:
        again = held(packages, text, names, store=store)
    assert read == 7 + 7 + 2 * 7 - stop_after
    assert told
    assert [e.model_copy(update={"peak_memory_bytes": None}) for e in again] == [
        e.model_copy(update={"peak_memory_bytes": None}) for e in whole
    ]


def test_another_text_does_not_go_on(
    packages: dict[str, Path], text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store(tmp_path / "one") as store:
        held(packages, text, ["float32"], store=store)
        kept = (tmp_path / "one" / "float32-task.journal.jsonl").read_bytes()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "float32-task.journal.jsonl").write_bytes(kept)
    text.write_text(TEXT.replace("word", "text"))
    (expected,) = held(packages, text, ["float32"])
    with Store(tmp_path / "two") as store:
        (found,) = held(packages, text, ["float32"], store=store)
    assert found.windows == expected.windows


# The command line.

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(hvlc: Hvlc) -> Command:
    """Exit code, stdout and stderr of `hvlc eval ARGUMENTS`."""
    return partial(hvlc, "eval")


def test_the_command_line_holds_a_package_against_its_reference(
    command: Command, packages: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    options = ("--task", text, "--tokens", 400, "--window", 64, "--reference", packages["float32"])
    code, out, _ = command(packages["w4a16-rtn"], *options, "-o", tmp_path / "out", "--json")
    assert code == 0
    reference, package = json.loads(out)
    assert (reference["name"], package["name"]) == ("float32", "w4a16-rtn")
    ratio = package["agreement"]["ratio"]
    assert ratio["value"] == pytest.approx(package["perplexity"]["value"] / reference["perplexity"]["value"])
    assert ratio["low"] < ratio["value"] < ratio["high"]
    assert package["tokens"] == 6 * 63
    assert package["fidelity"]["kl"]["value"] > 0
    assert "sequences" not in package["fidelity"]
    written = read_evaluation(tmp_path / "out" / "w4a16-rtn-task.json")
    assert written.fidelity is not None
    assert len(written.fidelity.sequences) == 6
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"float32-task.json", "w4a16-rtn-task.json", "report.html", "report.md"}
    code, out, _ = command(packages["w4a16-rtn"], *options, "--no-fidelity")
    assert code == 0
    for shown in (f"{package['perplexity']['value']:.3f}", f"{ratio['value']:.4f}", "378 tokens in 6", "–"):
        assert shown in out


def test_without_a_reference_there_is_no_ratio(command: Command, packages: dict[str, Path], text: Path) -> None:
    code, out, _ = command(packages["float32"], "--task", text, "--tokens", 64, "--window", 64, "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert found["agreement"] is found["fidelity"] is None
    assert found["perplexity"]["method"] == "range"


@pytest.mark.parametrize(
    "option",
    [("--encoder", "base"), ("-n", 3), ("--no-vrc",), ("--max-new-tokens", 3), ("--no-fidelity",), ("--reuse",)],
)
def test_options_for_questions_are_refused(
    command: Command, packages: dict[str, Path], text: Path, option: tuple[object, ...]
) -> None:
    code, out, _ = command(packages["float32"], "--task", text, *option, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "eval.option")


@pytest.mark.parametrize("option", [("--tokens", 64), ("--window", 64)])
def test_options_for_texts_are_refused(command: Command, tiny_float32: Path, option: tuple[object, ...]) -> None:
    code, out, _ = command(tiny_float32, *option, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, "eval.option")
