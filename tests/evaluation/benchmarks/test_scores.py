"""Scores of public benchmarks equal those of their reference implementations.

The rows are examples of the papers and of the reference implementations' own documents, and adversarial ones whose
scores the references computed (lmms-eval 0.7.2: `relaxed_correctness`, `EvalAIAnswerProcessor`,
`ocrbench_process_results`, `MultiChoiceRegexFilter`).
"""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvlc.evaluation.benchmarks.scores import (
    METRICS,
    choice,
    contains,
    contains_formula,
    evalai_normalized,
    relaxed_accuracy,
    vqa_accuracy,
)

TEXTS = st.text(max_size=12)


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [
        ("10", "10", True),
        ("10.5", "10", True),  # 5 %
        ("10.51", "10", False),
        ("9.5", "10", True),
        ("-10", "10", False),
        ("50%", "0.5", True),
        ("50%", "50", False),
        ("52%", "50%", True),
        ("0", "0", True),
        ("0.0", "0", False),  # 0 has no tolerance: texts are compared
        ("0.0001", "0", False),
        ("1,000", "1000", False),
        ("1e3", "1000", True),
        (" 12 ", "12", True),
        ("12 ", "Twelve", False),
        ("Yes", "yes", True),
        ("yes.", "yes", False),
        ("$5", "5", False),
        ("5 %", "0.05", True),
        ("%", "%", True),
        ("nan", "5", False),
        ("inf", "5", False),
        ("", "", True),
        ("", "5", False),
        ("１２", "12", True),  # full-width digits are numbers to Python
        ("É", "é", True),
    ],
)
def test_relaxed_accuracy(prediction: str, answer: str, right: bool) -> None:
    assert relaxed_accuracy(prediction, [answer]) == float(right)


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("The cat", "cat"),
        ("Two", "2"),
        ("none", "0"),
        ("dont", "don't"),
        ("James's", "james 's"),
        ("it's", "it 's"),
        ("twas", "'twas"),
        ("somebodyd've", "somebody'd've"),
        ("somebody'd", "somebodyd"),
        ("y'allll", "y'all'll"),
        ("shes", "shes"),
        ("lets", "lets"),
        ("Im", "im"),
        ("U.S.A.", "usa"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("1,000", "1000"),
        ("x-y", "x y"),
        ("x - y", "x y"),
        ("50%", "50%"),
        ("a/b", "b"),  # a slash between letters becomes a space, and an article goes
        ("what?", "what"),
        ("\tan\napple ", "apple"),
        ("", ""),
        ("." * 40, "." * 8),  # the reference strips 32
    ],
)
def test_normalization_of_vqa(text: str, normalized: str) -> None:
    assert evalai_normalized(text) == normalized


@given(TEXTS)
def test_normalization_leaves_no_capital_article_or_double_space(text: str) -> None:
    words = evalai_normalized(text).split(" ")
    assert not {"a", "an", "the"} & set(words)
    assert "" not in words[:-1] or words == [""]


@pytest.mark.parametrize(
    ("equal", "score"),
    [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)],
)
def test_vqa_accuracy_is_the_mean_over_nine_of_ten(equal: int, score: float) -> None:
    assert vqa_accuracy("Yes!", ["yes"] * equal + [f"no {k}" for k in range(10 - equal)]) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answers", "right"),
    [
        ("The total is 9.90.", ["9.90"], True),
        ("TOTAL", ["total"], True),
        ("ＡＢＣ１", ["abc1"], True),
        ("a\nb", ["a b"], True),
        ("x", ["y", "X"], True),
        ("", ["a"], False),
        ("cafe", ["café"], False),
    ],
)
def test_contains(prediction: str, answers: list[str], right: bool) -> None:
    assert contains(prediction, answers) == float(right)


@pytest.mark.parametrize(
    ("prediction", "answer", "right"),
    [("x ^ 2 + 1", "x^2", True), ("X^2", "x^2", False), ("\\frac{1}{2}", "\\frac {1} {2}", True)],
)
def test_contains_formula(prediction: str, answer: str, right: bool) -> None:
    assert contains_formula(prediction, [answer]) == float(right)


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        ("B", True),
        ("b", True),
        ("B.", True),
        (" B. water", True),
        ("(B)", True),
        ("B water", False),
        ("A. B", False),
        ("", False),
    ],
)
def test_choice(prediction: str, right: bool) -> None:
    assert choice(prediction, ["B"]) == float(right)


@given(TEXTS, st.lists(st.text(min_size=1, max_size=8).filter(str.strip), min_size=1, max_size=4))
def test_scores_are_within_0_and_1_and_an_answer_is_right(prediction: str, answers: list[str]) -> None:
    for name, metric in METRICS.items():
        assert 0 <= metric(prediction, answers) <= 1, name
    for name in ("exact_match", "anls", "contains", "contains_formula"):
        assert METRICS[name](answers[0], answers) == 1, name
