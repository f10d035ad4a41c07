"""What works with which family: the table in docs/families.md, which `HVLC_REGEN=1` writes.

`family_support.toml` holds the outcomes; the tests bring each one about: a few by default, all of them with `-m slow`.
"""

import os
import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from hvlc.errors import HvlcError
from hvlc.evaluation.distributions import kl_divergence
from hvlc.evaluation.documents import DocumentsTask
from hvlc.graphs.bundle import Role
from hvlc.graphs.plan import CacheType
from hvlc.manifest.manifest import Manifest
from hvlc.recipes.loading import load_recipe, shipped_recipes
from hvlc.recipes.schema import FormatSpec
from hvlc.runtime.generation import open_model
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.bisect.bisect import Request, bisect
from hvlc.workflows.build.build import build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from hvlc.workflows.calibrate.show import show_inputs
from hvlc.workflows.evaluate.compare import EvaluationRequest, compare_models, open_models
from hvlc.workflows.evaluate.evaluate import evaluate_questions
from hvlc.workflows.evaluate.perplexity import evaluate_texts
from hvlc.workflows.lint.lint import lint
from hvlc.workflows.sensitivity.sensitivity import SensitivityOptions, measure
from tests.export.tiny_families import save_text
from tests.helpers.tiny import picture
from tests.helpers.tiny_naflex import save_naflex
from tests.helpers.tiny_vision_language import save_block, save_grid

DATA = Path(__file__).with_name("family_support.toml")
DOCUMENT = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- support: written by tests/workflows/test_family_support.py -->\n", "<!-- support: end -->\n"

YES = "yes"
NPU = "qnn-sm8750"
#: Divergence from the float package as a share of that of other random weights; measured 0.1 to 0.2 with 4-bit weights.
NEAR = 0.3
FIXED = (*sorted(name for name in shipped_recipes() if name.startswith("npu")), "w4a16-rtn", "w4a16-static")
DATA_FREE = {"float32", "genai-default", "w4a16-float-vision", "w4a16-rtn"}
ASKED: dict[str, Any] = {"encoder": "auto", "vrc": False}

#: Widths are whole blocks, as in released checkpoints; of the language models, layers of every kind.
BLOCKS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_heads": 4}
TEXT: dict[str, dict[str, Any]] = {
    # more layers than a period, a window shorter than the cache
    "gemma3_text": {"num_hidden_layers": 7, "layer_types": None, "sliding_window": 24},
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention", "conv", "conv"]},
}
TOWER = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
SEES: dict[str, Callable[..., Path]] = {
    "gemma3": partial(save_block, vision=TOWER),
    "lfm2_vl": partial(save_naflex, vision=TOWER, projector={"projector_hidden_size": 64}),
    "qwen2_5_vl": partial(save_grid, family="qwen2_5_vl", vision=BLOCKS),
    "qwen3_vl": partial(save_grid, family="qwen3_vl", vision=BLOCKS),
}
FAMILIES = (*TEXT, *SEES)
GRIDS = ((96, 64), (32, 24))  # heights and widths of images: one that LFM2-VL cuts into tiles, and a small one
COMMANDS = ("`sensitivity", "`build", "`eval", "`compare", "`bisect", "`verify", "`lint")


@dataclass(frozen=True)
class Subject:
    """A family's checkpoint and what is made of it.

    Attributes:
        family: its model_type.
        root: a directory of its own.
    """

    family: str
    root: Path

    @property
    def sees(self) -> bool:
        """Whether the family takes images."""
        return self.family in SEES

    @property
    def fixed(self) -> dict[str, Any]:
        """Options of a build of fixed shapes that is not compiled; grids are the images' own, so nothing is resized."""
        grids = {"grids": GRIDS} if self.family.startswith("qwen") else {}
        return {"context": 512 if self.sees else 256, "aot": False, **grids}

    def saved(self, name: str, seed: int) -> Path:
        """A checkpoint of these random weights."""
        if self.sees:
            return SEES[self.family](self.root / name, seed=seed)
        return save_text(
            self.root / name, self.family, seed=seed, **{"max_position_embeddings": 256} | TEXT[self.family]
        )

    @cached_property
    def checkpoint(self) -> Path:
        """Its checkpoint."""
        return self.saved("checkpoint", 0)

    def built(self, recipe: str, target: str = "cpu", *, name: str | None = None, **options: Any) -> Path:
        """A package of the checkpoint, made once for each name."""
        output = self.root / (name or f"{target}-{recipe}")
        if not output.exists():
            samples = {} if recipe in DATA_FREE else {"samples": 4}
            build(open_request(self.checkpoint, target, recipe, output, threads=1, **samples | options))
        return output

    @cached_property
    def images(self) -> list[Image.Image]:
        """Images to ask about, one large enough for tiles and a small one; none for a language model."""
        return [picture(height, width) for height, width in GRIDS] if self.sees else []

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The same as files."""
        (self.root / "images").mkdir()
        for number, image in enumerate(self.images):
            image.save(self.root / "images" / f"{number}.png")
        return tuple(sorted((self.root / "images").iterdir()))

    @cached_property
    def questions(self) -> tuple[tuple[str, list[Image.Image]], ...]:
        """Questions, of which one leaves every window."""
        return ("Hi", self.images[:1]), ("abcdefg " * 10, self.images[1:])

    def logits(self, package: Path, answers: Sequence[Sequence[int]]) -> np.ndarray:
        """Logits of a package before each token of some answers, float32 `[tokens, vocabulary]`."""
        model = open_model(package)
        return np.concatenate(
            [model.logits(*asked, answer, **ASKED) for asked, answer in zip(self.questions, answers, strict=True)]
        )

    @cached_property
    def reference(self) -> tuple[list[tuple[int, ...]], np.ndarray, float]:
        """Answers of the float package, its logits, and the mean divergence of another checkpoint's from them."""
        package = self.built("float32")
        model = open_model(package)
        answers = [model.answer(*asked, max_new_tokens=6, **ASKED).tokens for asked in self.questions]
        expected = self.logits(package, answers)
        return answers, expected, float(kl_divergence(expected, self.logits(self.other(1), answers)).mean())

    def other(self, seed: int) -> Path:
        """The float package of the same architecture with other random weights."""
        output = self.root / f"other-{seed}"
        build(open_request(self.saved(f"other-checkpoint-{seed}", seed), "cpu", "float32", output, threads=1))
        return output

    def divergence(self, package: Path) -> np.ndarray:
        """Divergence of a package from the float one, float64 `[tokens]`; about 1 for other weights."""
        answers, expected, scale = self.reference
        return kl_divergence(expected, self.logits(package, answers)) / scale


# What is tried: each function raises what refuses it, and fails where something is wrong.


def speaks(subject: Subject, recipe: str) -> None:
    """A package of dynamic shapes speaks like the checkpoint, and its cache is what the recipe says."""
    package = subject.built(recipe)
    found = subject.divergence(package)
    assert found.mean() < NEAR
    assert bool(found.max() > 0) is (recipe != "float32")
    assert keeps_int8(package) is (load_recipe(recipe).kv_cache is CacheType.INT8)


def keeps_int8(package: Path) -> bool:
    """Whether the keys and values that a package of dynamic shapes keeps are int8; all of them, or none."""
    graph = onnx.load(package / Manifest.load(package).components["model"].file, load_external_data=False).graph
    types = {x.type.tensor_type.elem_type for x in graph.input if x.name.endswith((".key", ".value"))}
    (kept,) = types
    return bool(kept == onnx.TensorProto.INT8)


def speaks_fixed(subject: Subject, recipe: str) -> None:
    """A package of fixed shapes speaks like the checkpoint; its graphs run on the CPU here."""
    assert 0 < subject.divergence(subject.built(recipe, NPU, **subject.fixed)).mean() < NEAR


def calibrates_on_images(subject: Subject) -> None:
    """A directory of images calibrates a build."""
    assert subject.files or not subject.sees
    source = str(subject.root / "images")
    if not subject.sees:
        picture(70, 40).save(subject.root / "images" / "0.png")
        picture(40, 70).save(subject.root / "images" / "1.png")
    show_inputs(source, subject.checkpoint, samples=2, tokens=64)
    package = subject.built("w4a16", name="seen", calibration=source, samples=2)
    assert Manifest.load(package).sources.calibration_samples == 2
    assert subject.divergence(package).mean() < NEAR


def measures_sensitivity(subject: Subject) -> None:
    """Every part has a damage."""
    formats = (FormatSpec(bits=4, block_size=32), FormatSpec(bits=8, block_size=32))
    how = SensitivityOptions(formats, samples=2, tokens=24, scaled=True)
    checkpoint = Checkpoint.open(subject.checkpoint)
    found = measure(checkpoint, subject.checkpoint, load_recipe("w4a16-rtn"), load_target("cpu"), how)
    assert {part.role for part in found.parts} >= {Role.DECODER, *([Role.VISION_ENCODER] if subject.sees else [])}
    assert all(c.damage > 0 for part in found.parts for c in part.candidates)


def keeps_a_budget(subject: Subject) -> None:
    """Formats are chosen within a size."""
    package = subject.built("w4a16-rtn", name="budget", budget="6bpw", cache=subject.root / "cache")
    assert subject.divergence(package).mean() < NEAR


def evaluates(subject: Subject) -> None:
    """The float package answers as the checkpoint does, by transformers where it sees."""
    package = subject.built("float32")
    if subject.sees:
        found = evaluate_questions(package, DocumentsTask(2), reference=subject.checkpoint, max_new_tokens=4)
        ours, theirs = found.evaluations, found.references
        assert [x.tokens for x in ours[0].examples] == [x.tokens for x in theirs[0].examples]
        fidelity = ours[0].fidelity
    else:
        both = [subject.checkpoint, package]
        fidelity = evaluate_texts(both, text(subject), against_first=True, tokens=64, window=32)[1].fidelity
    assert fidelity is not None
    assert fidelity.kl.value < 1e-5


def text(subject: Subject) -> Path:
    """A text to read."""
    path = subject.root / "text.txt"
    path.write_text("A cat sat on the mat, and 12 dogs came by. " * 5, "utf-8")
    return path


def compares(subject: Subject) -> None:
    """Two packages are compared, values stage by stage too."""
    packages = [subject.built("float32"), subject.built("w4a16-rtn")]
    asked = (
        {"count": 2, "max_new_tokens": 3} if subject.sees else {"task": str(text(subject)), "tokens": 64, "window": 32}
    )
    found = compare_models(open_models(packages), EvaluationRequest(traces=1, **asked))
    assert found.comparison.stages


def bisects(subject: Subject) -> None:
    """Nothing departs in the float package; a package of other weights departs."""
    question = Request(subject.built("float32"), subject.checkpoint, "What is it?", subject.files, max_new_tokens=4)
    assert bisect(question).departs is None
    other = Request(subject.other(3), subject.checkpoint, "What is it?", subject.files, max_new_tokens=4)
    assert bisect(other).departs is not None


def rebuilds(subject: Subject) -> None:
    """A package with calibrated levels is made again to the byte."""
    package = subject.built("w4a16")
    assert rebuild(package, subject.checkpoint, threads=1).files == len(Manifest.load(package).files) - 1


def lints(subject: Subject, target: str) -> None:
    """A package of fixed shapes has nothing that the target refuses; for a CPU, any package."""
    options = {} if target == "cpu" else subject.fixed
    found = lint(subject.built("w4a16-rtn", target, **options), load_target(target))
    assert not found.refused(allow_hazards=False)


ROWS: dict[str, Callable[[Subject], None]] = {
    **{f"`{recipe}`": partial(speaks, recipe=recipe) for recipe in sorted(shipped_recipes())},
    **{f"`{recipe}`, fixed shapes": partial(speaks_fixed, recipe=recipe) for recipe in FIXED},
    "calibration on images": calibrates_on_images,
    "`sensitivity`": measures_sensitivity,
    "`build --budget`": keeps_a_budget,
    "`eval`": evaluates,
    "`compare`": compares,
    "`bisect`": bisects,
    "`verify --rebuild`": rebuilds,
    "`lint`": partial(lints, target="cpu"),
    f"`lint --target {NPU}`": partial(lints, target=NPU),
}


def is_quick(family: str, row: str) -> bool:
    """Whether the default tests try a cell: recipes of language models, and what is new in models that see."""
    quick = (("qwen3_vl", "`w4a16-kv8`"), ("qwen3_vl", "`bisect`"), ("lfm2_vl", "`w4a16-static`"))
    spoken = family in TEXT and row.startswith("`") and not row.startswith(COMMANDS)
    return (family, row) in quick or (spoken and (family == "lfm2" or "fixed" not in row))


def outcomes() -> dict[str, dict[str, str]]:
    """For each row, what comes of it for each family: "yes", or the codes of the refusal."""
    content = tomllib.loads(DATA.read_text("utf-8"))
    return {row: dict(zip(content["families"], found, strict=True)) for row, found in content["rows"].items()}


def cells() -> list[Any]:
    """Every cell, family by family; those that are not quick are slow."""
    return [
        pytest.param(family, row, id=f"{family}-{row}", marks=[] if is_quick(family, row) else [pytest.mark.slow])
        for family in FAMILIES
        for row in ROWS
    ]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Subject]:
    """The subject of a family, made once."""
    return lru_cache(lambda family: Subject(family, tmp_path_factory.mktemp(family)))


def outcome(tried: Callable[[], None]) -> str:
    """What comes of a trial: "yes", or the codes of all that refuses it."""
    try:
        tried()
    except HvlcError as error:
        return ", ".join(sorted(set(re.findall(r"\[([a-z_]+\.[a-z_]+)\]", str(error)))))
    return YES


@pytest.mark.parametrize(("family", "row"), cells())
def test_each_thing_works_or_is_refused_as_the_table_says(
    subject: Callable[[str], Subject], family: str, row: str
) -> None:
    assert outcome(partial(ROWS[row], subject(family))) == outcomes()[row][family]


def test_the_comparison_sees_other_weights(subject: Callable[[str], Subject]) -> None:
    one = subject("gemma3_text")
    assert one.divergence(one.other(2)).mean() > 2 * NEAR


def test_a_trial_that_fails_is_not_a_refusal() -> None:
    def broken() -> None:
        raise AssertionError

    with pytest.raises(AssertionError):
        outcome(broken)


def table() -> list[str]:
    """The lines of the table."""
    lines = [f"| | {' | '.join(f'`{family}`' for family in FAMILIES)} |", f"| :--- |{' :---: |' * len(FAMILIES)}"]
    for row, found in outcomes().items():
        said = (found[family] if found[family] == YES else f"`{found[family]}`" for family in FAMILIES)
        lines.append(f"| {row} | {' | '.join(said)} |")
    return lines


def written(document: str, lines: str) -> str:
    """The document with these lines as its table."""
    before, _, rest = document.partition(BEGIN)
    return f"{before}{BEGIN}{lines}{END}{rest.partition(END)[2]}"


def test_the_document_has_the_table() -> None:
    found = outcomes()
    assert list(found) == list(ROWS)
    assert all(list(row) == list(FAMILIES) for row in found.values())
    expected = written(DOCUMENT.read_text("utf-8"), "\n".join(table()) + "\n")
    if os.environ.get("HVLC_REGEN"):
        DOCUMENT.write_text(expected, "utf-8")
    text = DOCUMENT.read_text("utf-8")
    assert text == expected
    assert text.count(BEGIN) == text.count(END) == 1
    assert written(text, "| |\n") != text


def test_the_document_explains_every_refusal() -> None:
    codes = {code for row in outcomes().values() for found in row.values() for code in found.split(", ")} - {YES}
    behind = DOCUMENT.read_text("utf-8").partition(END)[2]
    assert codes <= set(re.findall(r"`([a-z_.]+)`", behind))
