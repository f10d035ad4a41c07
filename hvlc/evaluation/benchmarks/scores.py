"""Scores of public benchmarks, from 0 to 1, by the rules of their reference implementations.

- `anls`: see `hvlc.evaluation.metrics`.
- `relaxed_accuracy`: Masry et al., "ChartQA", ACL 2022 (arXiv 2203.10244), end of section 5.1; numbers may be 5 % off.
- `vqa_accuracy`: Antol et al., "VQA", ICCV 2015, with the normalization of the EvalAI server, as TextVQA's own
  evaluation has it (Singh et al., arXiv 1904.08920).
- `contains`, `contains_formula`: Liu et al., "OCRBench" (arXiv 2305.07895).
- `choice`: a letter, as AI2D is asked (Kembhavi et al., ECCV 2016) by evaluation harnesses.
"""

import re
import string
from collections.abc import Callable, Mapping, Sequence

from hvlc.evaluation.metrics import anls, exact_match

_TOLERANCE = 0.05  # of relaxed accuracy, relative

_NUMBERS = {"none": "0"} | {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
}
_ARTICLES = frozenset(("a", "an", "the"))
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")
_MOST_PERIODS = 32  # the reference passes a flag in the place of a count
#: Contractions that are restored where one apostrophe is missing.
_CONTRACTIONS = """
 ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()


def _restorations() -> dict[str, str]:
    """Forms without one of their apostrophes, and what they stand for."""
    found = {word[:at] + word[at + 1 :]: word for word in _CONTRACTIONS for at, mark in enumerate(word) if mark == "'"}
    return found | {"somebody'd": "somebodyd"}  # the reference has this one the other way round


_RESTORED = _restorations()


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is an answer, or within 5 % of one that is a number and not 0; percentages are numbers."""
    return float(any(_relaxed(prediction, answer) for answer in answers))


def _relaxed(prediction: str, answer: str) -> bool:
    said, true = _number(prediction), _number(answer)
    if said is not None and true:
        return abs(said - true) / abs(true) <= _TOLERANCE
    return prediction.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Agreement with people: on average over all but one of the answers, a third for each that is equal, at most 1."""
    said, given = evalai_normalized(prediction), [evalai_normalized(answer) for answer in answers]
    equal = given.count(said)
    return sum(min(1.0, (equal - (answer == said)) / 3) for answer in given) / len(given)


def evalai_normalized(text: str) -> str:
    """Text as the EvalAI server of VQA compares it: lower case, digits for words, no articles, no punctuation."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = _without_marks(text.replace("\n", " ").replace("\t", " ").strip())
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def _without_marks(text: str) -> str:
    """Text without marks: at the edge of a word one goes, between letters it becomes a space; after 1,000 all go."""
    numbers = _COMMA_IN_NUMBER.search(text) is not None
    found = text
    for mark in _MARKS:
        goes = numbers or f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", found, count=_MOST_PERIODS)


def contains(prediction: str, answers: Sequence[str]) -> float:
    """1 where an answer is within the prediction; case does not count, and full-width letters are their ASCII ones."""
    said = _folded(prediction.strip())
    return float(any(_folded(answer) in said for answer in answers))


def _folded(text: str) -> str:
    wide = {0xFF01 + k: chr(0x21 + k) for k in range(0x5E)} | {0x3000: " "}
    return text.translate(wide).lower().strip().replace("\n", " ")


def contains_formula(prediction: str, answers: Sequence[str]) -> float:
    """1 where an answer is within the prediction; case counts, spaces do not."""
    said = _unspaced(prediction)
    return float(any(_unspaced(answer) in said for answer in answers))


def _unspaced(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def choice(prediction: str, answers: Sequence[str]) -> float:
    """1 where the prediction is the letter of an answer, or begins with it and a period; case does not count."""
    letter = re.match(r"\s*([A-Z])\.", prediction)
    said = _bare(letter[1] if letter else prediction)
    return float(any(said == _bare(answer) for answer in answers))


def _bare(text: str) -> str:
    return text.lower().translate(str.maketrans("", "", string.punctuation))


Metric = Callable[[str, Sequence[str]], float]

#: Metrics of a task's own, by the name that tasks and records give them.
METRICS: Mapping[str, Metric] = {
    "exact_match": lambda prediction, answers: float(exact_match(prediction, answers)),
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "vqa_accuracy": vqa_accuracy,
    "contains": contains,
    "contains_formula": contains_formula,
    "choice": choice,
}
