import math
import tracemalloc
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hvlc.errors import TargetError, UserError
from hvlc.evaluation.answerer import Answerer
from hvlc.evaluation.compare import compare, with_agreement
from hvlc.evaluation.documents import DocumentsTask
from hvlc.evaluation.evaluate import evaluate, examples_digest, measure_fidelity, summarize
from hvlc.evaluation.journal import Journal
from hvlc.evaluation.task import Example, Task
from hvlc.evaluation.tasks import open_task
from hvlc.results import Answered, Evaluation, ExampleResult


def run(answerer: Answerer, task: Task, **options) -> Evaluation:
    return evaluate(answerer, task, **{"encoder": "auto", "vrc": True, **options})


def test_evaluate_keeps_every_example_and_sums_up(scripted, arithmetic) -> None:
    answerer, seen = scripted(["No 0", "No  1 ", "no 2", "What?"]), []
    result = run(answerer, arithmetic(4), progress=lambda *at: seen.append(at), size_bytes=7, max_new_tokens=9)
    assert [example.exact for example in result.examples] == [True, True, False, False]
    assert [example.anls for example in result.examples] == [1, 1, 1, 0]
    summary = result.summary
    assert (summary.n, summary.exact_match.value, summary.anls.value) == (4, 0.5, 0.75)
    assert {kind: (s.value, s.n) for kind, s in summary.exact_match_by_kind.items()} == {
        "blue": (0.5, 2),
        "red": (0.5, 2),
    }
    assert (summary.visual_tokens.value, summary.mean_scale) == (16, 0.5)
    assert summary.median_time_to_first_token.value == pytest.approx(0.025)
    tokens = [len(text) for text in answerer.script]
    assert summary.tokens_per_second is not None
    assert summary.tokens_per_second.value == pytest.approx((sum(tokens) - 4) / 0.008)
    assert result.examples[0].tokens_per_second == pytest.approx(3 / 0.002)
    assert (result.encoder, result.examples[0].encoder, result.runs_on, result.size_bytes) == (
        "auto",
        "base",
        "a test",
        7,
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert answerer.asked[2] == ("2?", 1, "auto", True, 9)


def test_a_speed_that_was_not_measured_is_absent(scripted, arithmetic) -> None:
    result = run(scripted(["x", ""]), arithmetic(2))
    assert result.summary.tokens_per_second is None
    assert result.examples[0].tokens_per_second is None


def test_one_image_is_in_memory_at_a_time(scripted) -> None:
    class Counting:
        name = "counting"
        loaded: list[int] = []  # noqa: RUF012

        def __len__(self) -> int:
            return 3

        def example(self, index: int) -> Example:
            assert len(answerer.asked) == index  # the one before was answered before this one is loaded
            return Example(f"e{index}", "k", "q", ("a",), (Image.new("RGB", (1, 1)),))

    answerer = scripted(["a"] * 3)
    assert run(answerer, Counting()).summary.exact_match.value == 1


@pytest.mark.parametrize(
    ("count", "code"), [(0, "evaluation.empty"), (-1, "evaluation.empty"), (5, "evaluation.count")]
)
def test_a_count_that_the_task_has_not(scripted, arithmetic, count: int, code: str) -> None:
    with pytest.raises(UserError) as error:
        run(scripted([]), arithmetic(4), count=count)
    assert error.value.code == code


def test_an_empty_task_is_an_error_not_a_score(scripted, arithmetic) -> None:
    with pytest.raises(UserError, match=r"evaluation\.empty"):
        run(scripted([]), arithmetic(0))
    with pytest.raises(ValueError, match="0 of 0"):
        summarize([])


def test_an_error_names_the_example(arithmetic) -> None:
    class Failing:
        name = runs_on = "failing"

        def answer(self, *_, **__):
            raise TargetError("x.y", "too long", "shorten it")

    with pytest.raises(TargetError) as error:
        run(Failing(), arithmetic(2))
    assert (error.value.code, error.value.cause, error.value.fix) == ("x.y", "example e0: too long", "shorten it")


def test_compare_counts_pairs(scripted, arithmetic) -> None:
    task = arithmetic(6)
    reference = run(scripted(["No 0", "No 1", "No 2", "No 3", "x", "x"], name="float32"), task)
    ours = run(scripted(["No 0", "No  1", "x", "x", "No 4", "x"]), task)
    agreement = compare(ours, reference)
    assert (agreement.both_right, agreement.lost, agreement.won, agreement.both_wrong) == (2, 2, 1, 1)
    assert agreement.same_text.value == 3 / 6  # up to whitespace
    assert agreement.same_tokens.value == 2 / 6
    assert agreement.recovery == 3 / 4
    assert agreement.p_value == 1.0
    assert agreement.reference == "float32 · auto · VRC"
    assert with_agreement(ours, reference).agreement == agreement


def test_compare_with_itself_finds_nothing(scripted, arithmetic) -> None:
    result = run(scripted(["No 0", "x", "No 2"]), arithmetic(3))
    agreement = compare(result, result)
    assert (agreement.lost, agreement.won, agreement.recovery, agreement.p_value) == (0, 0, 1.0, 1.0)
    assert agreement.same_tokens.value == 1


def test_shuffled_answers_are_seen(scripted, arithmetic) -> None:
    right = [f"No {i}" for i in range(10)]
    reference, shuffled = run(scripted(right), arithmetic(10)), run(scripted(right[1:] + right[:1]), arithmetic(10))
    agreement = compare(shuffled, reference)
    assert (agreement.lost, agreement.same_text.value, agreement.recovery) == (10, 0, 0)
    assert agreement.p_value < 0.01


def test_no_recovery_against_a_reference_at_0(scripted, arithmetic) -> None:
    reference = run(scripted(["x", "x"]), arithmetic(2))
    assert compare(reference, reference).recovery is None


@pytest.mark.parametrize("other", [{"count": 3}, {"count": 4, "shade": 1}])
def test_a_wrong_reference_is_refused(scripted, arithmetic, other: dict[str, int]) -> None:
    ours, reference = run(scripted(["x"] * 4), arithmetic(4)), run(scripted(["x"] * 4), arithmetic(**other))
    with pytest.raises(UserError, match=r"compare\.unpaired"):
        compare(ours, reference)


def test_shuffled_expectations_are_other_examples(scripted, arithmetic) -> None:
    """The same answers of the same package: only what counts as right was shuffled."""

    class Shuffled(arithmetic):
        def example(self, index: int) -> Example:
            return replace(super().example(index), answers=super().example((index + 1) % self.count).answers)

    right = [f"No {i}" for i in range(10)]
    reference, shuffled = run(scripted(right), arithmetic(10)), run(scripted(right), Shuffled(10))
    assert shuffled.summary.exact_match.value == 0
    with pytest.raises(UserError, match=r"compare\.unpaired"):
        compare(shuffled, reference)


class KilledError(Exception):
    """What kills an evaluation in these tests."""


@dataclass
class Failing:
    """Answers as another does, until it is killed."""

    answerer: Answerer
    after: int
    name: str = "scripted"
    runs_on: str = "a test"

    def answer(self, *asked, **how):
        self.after -= 1
        if self.after < 0:
            raise KilledError
        return self.answerer.answer(*asked, **how)


def journal(path: Path) -> Journal[ExampleResult]:
    return Journal(path, {"task": "arithmetic"}, ExampleResult)


def test_a_killed_evaluation_goes_on_where_it_was(scripted, arithmetic, tmp_path: Path) -> None:
    script = ["No 0", "x", "No 2", "No 3", "x", "No 5"]
    whole = run(scripted(script), arithmetic(6))
    first, path = journal(tmp_path / "j"), tmp_path / "j"
    with pytest.raises(KilledError):
        run(Failing(scripted(script), 4), arithmetic(6), journal=first)
    first.close()
    second, rest = journal(path), scripted(script[4:])
    told: list[tuple[int, int]] = []
    again = run(rest, arithmetic(6), journal=second, progress=lambda *at: told.append(at))
    assert second.found == 4
    assert [prompt for prompt, *_ in rest.asked] == ["4?", "5?"]  # the missing ones and no other
    assert told[-1] == (6, 6)
    assert times_apart(again) == times_apart(whole)


def times_apart(evaluation: Evaluation) -> dict[str, object]:
    times = {"time_to_first_token", "decode_seconds"}
    examples = [example.model_dump(exclude=times) for example in evaluation.examples]
    scores = evaluation.summary.model_dump(include={"n", "exact_match", "anls", "visual_tokens", "generated_tokens"})
    return {"examples": examples, "digest": evaluation.examples_digest, **scores}


def test_answers_to_what_has_changed_are_asked_again(scripted, arithmetic, tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Changed(arithmetic):
        def example(self, index: int) -> Example:
            example = super().example(index)
            if index == 1:
                return replace(example, question="1 ?")
            return replace(example, images=(Image.new("RGB", (4, 3), (0, 0, 1)),)) if index == 2 else example

    first = journal(tmp_path / "j")
    run(scripted(["old"] * 4), arithmetic(4), journal=first)
    first.close()
    answerer = scripted(["new"] * 4)
    changed = run(answerer, Changed(4), journal=journal(tmp_path / "j"))
    assert [example.prediction for example in changed.examples] == ["old", "new", "new", "old"]
    assert [prompt for prompt, *_ in answerer.asked] == ["1 ?", "2?"]


def test_the_digest_of_a_task_is_that_of_its_evaluation(scripted, arithmetic) -> None:
    assert examples_digest(arithmetic(4), 3) == run(scripted(["x"] * 3), arithmetic(4), count=3).examples_digest
    assert examples_digest(arithmetic(4)) != examples_digest(arithmetic(4), 3)


@dataclass
class Expecting:
    """Finds one token likeliest, whatever it is asked."""

    token: int
    calls: list[tuple[str, int, tuple[int, ...], str, bool]] = field(default_factory=list)

    def logits(self, prompt, images, answer, *, encoder, vrc):
        self.calls.append((prompt, len(images), tuple(answer), encoder, vrc))
        return np.tile(np.eye(5, dtype=np.float32)[self.token] * 3, (len(answer), 1))


def test_fidelity_goes_along_the_references_answers(scripted, arithmetic) -> None:
    expected = run(scripted(["ab", "c", "def"]), arithmetic(3), encoder="base")
    ours, reference = Expecting(1), Expecting(2)
    found = measure_fidelity(ours, reference, arithmetic(3), expected, reference_digest="0" * 64)
    answers = [tuple(text.encode()) for text in ("ab", "c", "def")]
    assert ours.calls == reference.calls == [(f"{i}?", 1, answers[i], "base", True) for i in range(3)]
    assert [sequence.tokens for sequence in found.sequences] == [2, 1, 3]
    assert (found.top1.value, found.reference) == (0.0, expected.label)
    p, q = math.exp(3) / (math.exp(3) + 4), 1 / (math.exp(3) + 4)
    assert found.kl.value == pytest.approx((p - q) * 3, rel=1e-6)
    same = measure_fidelity(reference, reference, arithmetic(3), expected, reference_digest="0" * 64)
    assert (same.kl.value, same.kl.high, same.top1.value) == (0.0, 0.0, 1.0)


def test_fidelity_on_another_task_is_refused(scripted, arithmetic) -> None:
    expected = run(scripted(["ab"] * 3), arithmetic(3))
    with pytest.raises(UserError, match=r"compare\.unpaired"):
        measure_fidelity(Expecting(1), Expecting(1), arithmetic(3, shade=9), expected, reference_digest="")


def test_memory_does_not_grow_with_the_examples() -> None:
    """An answer keeps some text of its example, and never the image: 120 KB each here."""

    @dataclass(frozen=True)
    class Photos:
        count: int
        name: str = "photos"
        shows_images: bool = True

        def __len__(self) -> int:
            return self.count

        def example(self, index: int) -> Example:
            return Example(f"e{index}", "k", f"{index}?", ("a",), (Image.new("RGB", (200, 200)),))

    class Short:
        name = runs_on = "short"

        def answer(self, prompt, images, **how):
            numbers = {"tiles": 1, "visual_tokens": 16, "prompt_tokens": 20, "time_to_first_token": 0.1}
            return Answered(text="a", tokens=(1, 2), encoder="", scales=(1.0,), decode_seconds=0.1, **numbers)

    def grown(count: int) -> int:
        tracemalloc.start()
        result = run(Short(), Photos(count))
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(result.examples) == count
        return kept

    few, many = grown(20), grown(420)
    assert many - few < 400 * 5_000


def test_the_documents_are_drawn_one_by_one_and_alike(scripted) -> None:
    task = open_task("documents", 3)
    answers = [task.example(index).answers[0] for index in range(3)]
    result = run(scripted(answers), task)
    assert result.summary.exact_match.value == 1
    assert result.examples_digest == run(scripted(["x"] * 3), DocumentsTask(3)).examples_digest
    assert len(open_task("documents")) == 256
    with pytest.raises(IndexError):
        task.example(3)


def test_an_unknown_task_offers_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'documents'"):
        open_task("document")
