"""Evaluation of real packages: fidelity, going on after a kill, reuse, and what is refused before the work."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.evaluation.documents import DocumentsTask
from hvlc.evaluation.tasks import open_task
from hvlc.results import Evaluation, read_evaluation
from hvlc.workflows.evaluate import evaluate as module
from hvlc.workflows.evaluate.evaluate import (
    EvaluationResult,
    ReferenceModel,
    Setting,
    evaluate_directory,
    evaluate_questions,
    settings_of,
    write_reports,
)
from hvlc.workflows.evaluate.evaluation_store import Store
from hvlc.workflows.evaluate.model import open_subject
from tests.export.tiny_families import save_text
from tests.helpers.faults import planted

BASE = Setting("base", True)


@pytest.fixture(scope="module")
def task() -> DocumentsTask:
    return DocumentsTask(3)


def held(package: Path, reference: Path, task: DocumentsTask) -> Evaluation:
    """A package against a reference."""
    found = evaluate_questions(package, task, reference=reference, encoders=["base"], max_new_tokens=6)
    assert found.evaluations[0].fidelity is not None
    return found.evaluations[0]


def test_a_package_against_itself_shows_nothing(tiny_w4a16: Path, task: DocumentsTask) -> None:
    found = held(tiny_w4a16, tiny_w4a16, task)
    assert found.fidelity
    assert found.agreement
    assert (found.fidelity.kl.value, found.fidelity.kl.high, found.fidelity.top1.value) == (0.0, 0.0, 1.0)
    assert (found.agreement.lost, found.agreement.won, found.agreement.same_tokens.value) == (0, 0, 1.0)
    assert found.fidelity.reference == f"{tiny_w4a16.name} (reference) · base · VRC"


def test_a_float32_package_is_its_checkpoint(tiny_float32: Path, tiny_checkpoint: Path, task: DocumentsTask) -> None:
    """Transformers without a cache on one side, onnxruntime-genai token by token on the other."""
    found = held(tiny_float32, tiny_checkpoint, task)
    assert found.fidelity
    assert 0 <= found.fidelity.kl.value < 1e-6
    assert found.fidelity.top1.value == 1
    assert found.fidelity.reference_digest == open_subject(tiny_checkpoint).digest


def test_fidelity_measures_damage(tiny_float32: Path, tiny_w4a16: Path, task: DocumentsTask, tmp_path: Path) -> None:
    swapped = planted("swapped decoder layers", tiny_float32, tmp_path / "swapped")
    quantized, damaged = (held(package, tiny_float32, task).fidelity for package in (tiny_w4a16, swapped))
    assert quantized
    assert damaged
    assert 1e-5 < quantized.kl.high < damaged.kl.low


def test_every_number_says_what_it_ran_on(tiny_w4a16: Path, task: DocumentsTask) -> None:
    (found,) = evaluate_directory(tiny_w4a16, task, [BASE], max_new_tokens=2)
    subject = open_subject(tiny_w4a16)
    assert found.runs_on == "onnxruntime CPU"
    assert {"package", "hvlc", "onnxruntime", "onnxruntime-genai", "processor", "system"} == set(found.provenance)
    assert found.provenance["package"] == subject.digest
    assert (found.size_bytes, found.bits_per_weight) == (subject.size_bytes, subject.bits_per_weight)
    assert found.bits_per_weight


def test_files_and_reports_are_written_and_journals_go(
    tiny_w4a16: Path, tiny_float32: Path, task: DocumentsTask, tmp_path: Path
) -> None:
    with Store(tmp_path) as store:
        found = evaluate_questions(
            tiny_w4a16, task, reference=tiny_float32, encoders=["base"], max_new_tokens=3, store=store
        )
        assert len(list(tmp_path.glob("*.journal.jsonl"))) == 3
    write_reports(tmp_path, found.shown, task, "title")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["float32-base-VRC.json", "report.html", "report.md", "w4a16-rtn-base-VRC.json"]
    assert read_evaluation(tmp_path / "w4a16-rtn-base-VRC.json") == found.evaluations[0]
    assert found.evaluations[0].fidelity
    assert "KL" in (tmp_path / "report.html").read_text("utf-8")


def counted(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    """The questions that models are asked from now on; more than so many end it all."""
    from hvlc.runtime.generation import VisionLanguageModel

    asked: list[str] = []
    for name in ("answer", "logits"):
        original = getattr(VisionLanguageModel, name)

        def counting(self, prompt, *rest, _original=original, _name=name, **how):
            if stop_after is not None and len(asked) >= stop_after:
                raise KeyboardInterrupt
            asked.append(f"{_name} {prompt}")
            return _original(self, prompt, *rest, **how)

        monkeypatch.setattr(VisionLanguageModel, name, counting)
    return asked


def times_apart(evaluation: Evaluation) -> dict[str, object]:
    times = {"time_to_first_token", "decode_seconds"}
    examples = [example.model_dump(exclude=times) for example in evaluation.examples]
    return {"examples": examples, "fidelity": evaluation.fidelity, "agreement": evaluation.agreement}


@pytest.mark.parametrize("stop_after", [1, 4, 9])
def test_what_was_stopped_goes_on(
    tiny_w4a16: Path,
    tiny_float32: Path,
    task: DocumentsTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_after: int,
) -> None:
    """In the package's answers, in the reference's, and between the two models' distributions."""
    told: list[str] = []

    def evaluated(store: Store | None) -> EvaluationResult:
        return evaluate_questions(
            tiny_w4a16, task, reference=tiny_float32, encoders=["base"], max_new_tokens=3, store=store
        )

    whole = evaluated(None)
    with monkeypatch.context() as patch:
        counted(patch, stop_after)
        with pytest.raises(KeyboardInterrupt), Store(tmp_path) as store:
            evaluated(store)
    with monkeypatch.context() as patch, Store(tmp_path, told.append) as store:
        asked = counted(patch)
        again = evaluated(store)
    done = stop_after if stop_after < 6 else 6 + (stop_after - 6) // 2  # both models for each distribution
    assert len(asked) == 3 + 3 + 2 * 3 - (done if done < 6 else 6 + 2 * (done - 6))
    assert len(told) == 1 + (stop_after > 3) + (stop_after > 6)
    assert told[-1].endswith(f"goes on after {done - 3 * (len(told) - 1)} of 3")
    assert times_apart(again.evaluations[0]) == times_apart(whole.evaluations[0])


_KILLED = """
import sys
from pathlib import Path
from hvlc.evaluation.documents import DocumentsTask
from hvlc.workflows.evaluate.evaluate import Setting, evaluate_directory
from hvlc.workflows.evaluate.evaluation_store import Store
with Store(Path(sys.argv[2])) as store:
    evaluate_directory(Path(sys.argv[1]), DocumentsTask(500), [Setting("base", True)], store=store, max_new_tokens=2)
"""


def test_a_killed_process_leaves_what_it_had(tiny_w4a16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", _KILLED, tiny_w4a16, tmp_path])
    path = tmp_path / "w4a16-rtn-base-VRC.journal.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not path.is_file() or path.read_bytes().count(b"\n") < 8):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = path.read_bytes().count(b"\n") - 1  # a torn last line has no end
    assert 7 <= done < 500
    asked, told = counted(monkeypatch, 3), []
    with pytest.raises(KeyboardInterrupt), Store(tmp_path, told.append) as store:
        evaluate_directory(tiny_w4a16, DocumentsTask(500), [BASE], store=store, max_new_tokens=2)
    assert told == [f"w4a16-rtn · base · VRC: goes on after {done} of 500"]
    assert len(asked) == 3
    assert path.read_bytes().count(b"\n") - 1 == done + 3


@pytest.mark.parametrize("change", ["package", "task", "bound"])
def test_other_work_does_not_go_on(
    tiny_w4a16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: DocumentsTask, change: str
) -> None:
    package = shutil.copytree(tiny_w4a16, tmp_path / "package")
    with monkeypatch.context() as patch:
        counted(patch, 2)
        with pytest.raises(KeyboardInterrupt), Store(tmp_path / "store") as store:
            evaluate_directory(package, task, [BASE], store=store, max_new_tokens=2)
    if change == "package":
        shutil.rmtree(package)
        planted("wrong int4 scales", tiny_w4a16, package)
    told: list[str] = []
    asked = counted(monkeypatch)
    with Store(tmp_path / "store", told.append) as store:
        other = DocumentsTask(2) if change == "task" else task
        evaluate_directory(package, other, [BASE], store=store, max_new_tokens=3 if change == "bound" else 2)
    assert (len(asked), told) == (len(other), [])


def test_a_finished_evaluation_is_reused_when_asked(
    tiny_w4a16: Path, tiny_float32: Path, task: DocumentsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluated(**options) -> Evaluation:
        with Store(tmp_path) as store:
            references = evaluate_directory(tiny_float32, task, [BASE], max_new_tokens=2, store=store, reuse=True)
            against = ReferenceModel(tiny_float32, references)
            how = {"max_new_tokens": 2, "store": store, "against": against, **options}
            return evaluate_directory(tiny_w4a16, task, [BASE], **how)[0]

    first = evaluated()
    asked = counted(monkeypatch)
    assert evaluated(reuse=True) == first
    assert asked == []
    assert evaluated(reuse=True, max_new_tokens=1) != first
    assert len(asked) == 3 + 2 * 3
    evaluated(reuse=False)
    assert len(asked) == 2 * (3 + 2 * 3)


def test_a_changed_question_is_not_reused(tiny_w4a16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "task.jsonl"

    def evaluated(question: str) -> None:
        path.write_text(json.dumps({"question": question, "answers": ["a"]}))
        with Store(tmp_path) as store:
            task = open_task(str(path))
            evaluate_directory(tiny_w4a16, task, [BASE], max_new_tokens=1, store=store, reuse=True)

    evaluated("What?")
    asked = counted(monkeypatch)
    evaluated("What?")
    assert asked == []
    evaluated("Who?")
    assert asked == ["answer Who?"]


@pytest.fixture(scope="module")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("language") / "llama", "llama")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "capitals.jsonl"
    lines = [{"question": f"Capital {i}?", "answers": [f"{i}"]} for i in range(3)]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def test_a_language_model_answers_questions_without_images(
    language: Path, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import open_request

    package = build(open_request(language, "cpu", "w4a16-rtn", tmp_path / "package")).output
    task = open_task(str(questions))
    found = evaluate_questions(package, task, reference=language, max_new_tokens=4)
    evaluation, reference = found.evaluations[0], found.references[0]
    assert (evaluation.label, evaluation.encoder, evaluation.vrc) == ("package", "", False)
    assert evaluation.summary.visual_tokens.value == 0
    assert evaluation.summary.mean_scale is None
    assert evaluation.fidelity
    assert evaluation.fidelity.kl.value > 0
    assert reference.runs_on == "onnxruntime CPU, as a float32 package"
    write_reports(tmp_path, found.shown, task, "title")
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Capital 2?" in page
    assert "<img" not in page


def test_a_model_that_sees_answers_questions_without_images_too(tiny_float32: Path, questions: Path) -> None:
    (found,) = evaluate_directory(tiny_float32, open_task(str(questions)), [BASE], max_new_tokens=1)
    assert found.examples[0].scales == ()


Refusal = Callable[[Path, Path], object]
REFUSED: dict[str, tuple[str, Refusal]] = {
    "images for a language checkpoint": ("eval.kind", lambda tiny, text: evaluate_questions(text, DocumentsTask(1))),
    "a reference that cannot see": (
        "eval.kind",
        lambda tiny, text: evaluate_questions(tiny, DocumentsTask(1), reference=text),
    ),
    "an unknown encoder": (
        "request.encoder",
        lambda tiny, text: evaluate_questions(tiny, DocumentsTask(1), encoders=["huge"]),
    ),
    "an encoder of a language model": ("request.encoder", lambda tiny, text: settings_of(open_subject(text), ["base"])),
    "no model": ("eval.model", lambda tiny, text: evaluate_questions(tiny.parent, DocumentsTask(1))),
    "no reference": (
        "eval.model",
        lambda tiny, text: evaluate_questions(tiny, DocumentsTask(1), reference=tiny.parent),
    ),
    "an empty task": ("evaluation.empty", lambda tiny, text: evaluate_questions(tiny, DocumentsTask(0))),
    "more than there is": ("evaluation.count", lambda tiny, text: evaluate_questions(tiny, DocumentsTask(1), count=2)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_evaluated_is_refused_before_the_work(
    tiny_float32: Path, language: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    code, attempt = REFUSED[case]
    monkeypatch.setattr(module, "answering", lambda subject: pytest.fail("a model was opened"))
    with pytest.raises(UserError) as error:
        attempt(tiny_float32, language)
    assert error.value.code == code


def test_another_vocabulary_is_refused_before_the_work(
    tiny_float32: Path, tiny_checkpoint: Path, task: DocumentsTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["text_config"]["vocab_size"] += 1
    (other / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(module, "answering", lambda subject: pytest.fail("a model was opened"))
    with pytest.raises(UserError) as error:
        evaluate_questions(tiny_float32, task, reference=other)
    assert error.value.code == "eval.reference"


def test_a_directory_that_cannot_be_made_has_a_code(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"results\.unwritable"):
        Store(tmp_path / "file" / "inside")
