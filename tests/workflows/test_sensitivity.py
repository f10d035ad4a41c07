"""Every damage against the definition: the weight is quantized in a bundle of its own, all graphs run as a whole."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import pytest

from hvlc.calibration.sensitivity import Probe
from hvlc.calibration.sources import Model, open_set
from hvlc.errors import UserError
from hvlc.export import export_bundle
from hvlc.graphs.bundle import Bundle, Role
from hvlc.passes.lists import structural_passes
from hvlc.passes.static.keep_all_logits import KeepAllLogits
from hvlc.recipes.schema import FormatSpec, Preparation, Recipe, RotateSpec
from hvlc.results.sensitivity import Part, Sensitivity
from hvlc.solvers import SOLVERS
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.formats import ScaleType, WeightFormat, weight_format
from hvlc.workflows.sensitivity.sensitivity import SensitivityOptions, measure
from tests.export.tiny_families import save_text
from tests.helpers.sessions import session
from tests.helpers.tiny import picture
from tests.helpers.tolerances import DAMAGE

CPU = load_target("cpu")
FORMATS = (FormatSpec(bits=4, block_size=32), FormatSpec(bits=8, block_size=16))
RULE = {"bits": 4, "block_size": 64}
RECIPE = Recipe.parse(
    {
        "schema_version": 1,
        "name": "mine",
        "description": "",
        "rules": [
            {"role": "decoder", "weights": "*.1.mlp.down_proj.*", "quantize": RULE, "fixed": True},
            {"role": "decoder", "weights": "*.1.*k_proj.*", "reason": "a test"},
            {"role": "decoder", "quantize": RULE},
            {"role": "vision_encoder", "optional": True, "quantize": {**RULE, "solver": "gptq"}},
        ],
    },
    "mine.yaml",
)
Say = Callable[[dict[str, np.ndarray]], list[np.ndarray]]


def measured(checkpoint: Path, cache: Path, **changes: object) -> Sensitivity:
    how = replace(SensitivityOptions(FORMATS, samples=4, tokens=24, cache=cache), **changes)
    return measure(Checkpoint.open(checkpoint), checkpoint, RECIPE, CPU, how)


def fresh(checkpoint: Path) -> Bundle:
    bundle = export_bundle(Checkpoint.open(checkpoint))
    for step in structural_passes(bundle.facts, CPU):
        step.run(bundle)
    KeepAllLogits().run(bundle)
    return bundle


def set_weight(bundle: Bundle, name: str, format: WeightFormat, solver: str = "rtn") -> None:
    """Give a weight the values of its levels, in every graph that reads it, as a product or as a table."""
    for component in bundle.components.values():
        found = component.graph.initializers.get(name)
        if found is None or component.role not in (Role.DECODER, Role.VISION_ENCODER, Role.EMBEDDING):
            continue
        values = found.const_value.numpy()
        lookup = any(use.op_type == "Gather" for use in found.consumers())
        rows = np.ascontiguousarray(values if lookup else values.T)
        rounded = SOLVERS[solver](rows, format).dequantize(rows.shape[1])
        found.const_value = ir.tensor(np.ascontiguousarray(rounded if lookup else rounded.T), name=name)


def say_text(bundle: Bundle, checkpoint: Path) -> list[np.ndarray]:
    """float64 `[n, vocabulary]` of each text."""
    decoder = bundle.with_role(Role.DECODER)[0]
    running = session(decoder.model)
    inputs = open_set("text", Model(checkpoint, bundle.facts), samples=4, tokens=24)
    return [speak(running, {"input_ids": sample.ids[None]}) for sample in inputs.samples]


def speak(running, feeds: dict[str, np.ndarray]) -> np.ndarray:
    length = next(iter(feeds.values())).shape[1]
    feeds = {**feeds, "attention_mask": np.ones((1, length), np.int64)}
    for value in running.get_inputs():
        if value.name.startswith("past"):
            feeds[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return running.run(["logits"], feeds)[0][0].astype(np.float64)


def say_images(bundle: Bundle, checkpoint: Path) -> list[np.ndarray]:
    """float64 `[n, vocabulary]` of what follows each image; even images go to the first encoder, odd ones to the
    second.
    """
    inputs = open_set("documents", Model(checkpoint, bundle.facts, True), samples=4, tokens=24)
    running = {name: session(c.model) for name, c in bundle.components.items()}
    encoders = [c.name for c in bundle.with_role(Role.VISION_ENCODER)]
    answers = []
    for number, sample in enumerate(inputs.images):
        asked = {
            "image": sample.picture.pixels(),
            "scale": np.zeros(1, np.float32),
            "max_visual_tokens": np.array([bundle.facts.sees.max_visual_tokens]),
        }
        tiles, image_ids, grid = running["front"].run(["pixel_values", "image_ids", "grid"], asked)
        features = running[encoders[number % 2]].run(["tile_features"], {"pixel_values": tiles})[0]
        seen = running["stitch"].run(["image_features"], {"tile_features": features, "grid": grid})[0]
        prompt = sample.prompt
        ids = prompt.ids(image_ids)
        embeds = running["embedding"].run(["inputs_embeds"], {"input_ids": ids[None], "image_features": seen})[0]
        logits = speak(running[bundle.with_role(Role.DECODER)[0].name], {"inputs_embeds": embeds})
        first = len(ids) - len(prompt.after)
        answers.append(logits[first - 1 : -1])
    return answers


def divergence(reference: list[np.ndarray], other: list[np.ndarray]) -> float:
    """Mean over all tokens, from the definition."""
    each = []
    for mine, theirs in zip(reference, other, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            p, q = np.exp(a - a.max()), np.exp(b - b.max())
            p, q = p / p.sum(), q / q.sum()
            each.append(sum(x * (np.log(x) - np.log(y)) for x, y in zip(p, q, strict=True) if x > 0))
    return float(np.mean(each))


def check_losses(checkpoint: Path, found: Sensitivity, say, parts: list[Part]) -> None:
    reference = say(fresh(checkpoint), checkpoint)
    assert found.tokens == sum(len(answers) for answers in reference)
    for part in parts:
        for candidate in part.candidates:
            bundle = fresh(checkpoint)
            format = weight_format(candidate.bits, candidate.block_size, True, ScaleType.FLOAT16)
            for weight in part.weights:
                set_weight(bundle, weight, format)
            if part.kind == "lm_head":  # whose bytes the table shares
                (table,) = {n for c in bundle.components.values() for n in c.graph.initializers if "embed_tokens" in n}
                set_weight(bundle, table, format)
            expected = divergence(reference, say(bundle, checkpoint))
            assert candidate.loss == pytest.approx(expected, rel=DAMAGE), (part.name, candidate.name)
            assert candidate.loss > 0


@pytest.fixture(scope="module")
def text_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_text(tmp_path_factory.mktemp("text") / "checkpoint", "llama", tie_word_embeddings=True)


@pytest.fixture(scope="module")
def text_found(text_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    return measured(text_checkpoint, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def image_found(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Sensitivity:
    return measured(tiny_checkpoint, tmp_path_factory.mktemp("cache"))


def test_parts_of_a_language_model(text_found: Sensitivity) -> None:
    kinds = [(part.layer, part.kind) for part in text_found.parts]
    assert kinds == [
        (0, "q_proj/k_proj/v_proj"),
        (0, "o_proj"),
        (0, "gate_proj/up_proj"),
        (0, "down_proj"),
        (1, "q_proj/v_proj"),  # the recipe keeps k_proj
        (1, "o_proj"),
        (1, "gate_proj/up_proj"),
        (None, "lm_head"),  # and fixes down_proj
    ]


def test_losses_of_a_language_model_are_those_of_whole_runs(text_checkpoint: Path, text_found: Sensitivity) -> None:
    head = [p for p in text_found.parts if p.kind == "lm_head"]
    assert all(c.table_bytes == 0 for c in head[0].candidates)  # tied
    check_losses(text_checkpoint, text_found, say_text, [text_found.parts[0], text_found.parts[5], *head])


def test_losses_of_a_model_that_sees_go_through_the_whole_chain(
    tiny_checkpoint: Path, image_found: Sensitivity
) -> None:
    assert len({p.component for p in image_found.parts}) == 3
    by_component = {p.component: p for p in image_found.parts}
    check_losses(tiny_checkpoint, image_found, say_images, [image_found.parts[0], *by_component.values()])


def test_sizes_are_those_of_the_format(text_found: Sensitivity) -> None:
    for part in text_found.parts:
        if part.kind == "o_proj":
            assert [c.stored_bytes for c in part.candidates] == [64 * 64 // 2 + 64 * 2 * 2, 64 * 64 + 64 * 4 * 2]
            assert part.elements == 64 * 64


def test_without_losses_output_errors_are_the_same(
    text_checkpoint: Path, text_found: Sensitivity, tmp_path: Path
) -> None:
    found = measured(text_checkpoint, tmp_path, loss=False)
    assert found.tokens == 0
    assert not found.measured
    for mine, other in zip(found.parts, text_found.parts, strict=True):
        for a, b in zip(mine.candidates, other.candidates, strict=True):
            assert a.loss is None
            assert a.damage == a.output_error == b.output_error
            assert b.damage == b.loss


@pytest.mark.parametrize("formats", [FORMATS, FORMATS[::-1]])
def test_scaled_losses_follow_the_coarsest_format_whatever_else_is_known(
    text_checkpoint: Path, text_found: Sensitivity, tmp_path: Path, formats: tuple[FormatSpec, ...]
) -> None:
    found = measured(text_checkpoint, tmp_path, scaled=True, formats=formats)
    assert found.scaled
    for part, known in zip(found.parts, text_found.parts, strict=True):
        candidates = {c.bits: c for c in part.candidates}
        assert candidates[4] == known.candidates[0]
        ratio = candidates[8].output_error / candidates[4].output_error
        assert candidates[8].loss == pytest.approx(ratio * candidates[4].loss)
    (file,) = tmp_path.iterdir()
    losses = [damage["loss"] for damage in json.loads(file.read_text())["damages"].values()]
    assert losses.count(None) == len(losses) // 2
    if formats == FORMATS:
        assert measured(text_checkpoint, tmp_path) == text_found  # measures what is missing
        assert measured(text_checkpoint, tmp_path, scaled=True) == found


def test_what_was_found_is_kept_and_a_killed_measurement_goes_on(
    text_checkpoint: Path, text_found: Sensitivity, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    run, tried = Probe.run, []

    def counting(probe: Probe, trials, found) -> None:
        def told(trial, damage) -> None:
            found(trial, damage)
            tried.append(trial)
            if len(tried) == 5:
                raise KilledError

        run(probe, trials, told)

    monkeypatch.setattr(Probe, "run", counting)
    with pytest.raises(KilledError):
        measured(text_checkpoint, tmp_path)
    assert measured(text_checkpoint, tmp_path) == text_found
    assert len(tried) == sum(len(part.candidates) for part in text_found.parts)
    assert measured(text_checkpoint, tmp_path) == text_found
    assert len(tried) == 16
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_another_solver_or_set_is_another_measurement(text_checkpoint: Path, tmp_path: Path) -> None:
    for changes in ({}, {"solver": "gptq"}, {"samples": 3}):
        measured(text_checkpoint, tmp_path, **changes, loss=False)
    assert len(list(tmp_path.iterdir())) == 3
    # one more format goes into the same file
    measured(text_checkpoint, tmp_path, formats=(*FORMATS, FormatSpec(bits=4, block_size=16)), loss=False)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_is_written_anew(text_checkpoint: Path, tmp_path: Path) -> None:
    found = measured(text_checkpoint, tmp_path, loss=False)
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    next(iter(content["damages"].values()))["output_error"] = float("nan")
    file.write_text(json.dumps(content))
    assert measured(text_checkpoint, tmp_path, loss=False) == found


def test_gptq_hurts_less_than_rounding(text_checkpoint: Path, text_found: Sensitivity, tmp_path: Path) -> None:
    found = measured(text_checkpoint, tmp_path, solver="gptq", loss=False)
    mine = sum(part.candidates[0].output_error for part in found.parts)
    assert mine < sum(part.candidates[0].output_error for part in text_found.parts)


def test_progress_ends_at_its_total_and_time_is_told_before(text_checkpoint: Path, tmp_path: Path) -> None:
    told: list[object] = []
    measure(
        Checkpoint.open(text_checkpoint),
        text_checkpoint,
        RECIPE,
        CPU,
        SensitivityOptions(FORMATS, samples=2, tokens=16, cache=tmp_path),
        lambda what, done, total: told.append((done, total)),
        told.append,
    )
    assert told[0] == (0, 1000)
    assert "16 trials on 2 samples, about" in str(told[1])
    assert told[2:] == sorted(told[2:])
    assert told[-1] == (1000, 1000)


def test_a_recipe_without_anything_to_choose_is_refused(text_checkpoint: Path, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"rules": RECIPE.rules[:1]})
    how = SensitivityOptions(FORMATS, samples=2, tokens=16, cache=tmp_path)
    with pytest.raises(UserError, match=r"sensitivity\.parts"):
        measure(Checkpoint.open(text_checkpoint), text_checkpoint, recipe, CPU, how)


def test_a_full_disk_is_found_before_the_work(
    text_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=100_000))
    with pytest.raises(UserError, match=r"sensitivity\.disk"):
        measured(text_checkpoint, tmp_path)
    assert measured(text_checkpoint, tmp_path, loss=False).parts


def test_fewer_images_than_encoders_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    lines = [{"text": "nothing to see here"}] * 2 + [{"image": "a.png", "question": "what?", "answer": "that"}]
    picture(40, 40).save(tmp_path / "a.png")
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UserError, match=r"sensitivity\.images"):
        measured(tiny_checkpoint, tmp_path / "cache", source=str(tmp_path / "set.jsonl"), tokens=64)


def test_a_rotation_comes_first(text_checkpoint: Path, text_found: Sensitivity, tmp_path: Path) -> None:
    rotated = RECIPE.model_copy(update={"prepare": Preparation(rotate=RotateSpec(untie=True))})
    how = SensitivityOptions(FORMATS, samples=4, tokens=24, cache=tmp_path, loss=False)
    found = measure(Checkpoint.open(text_checkpoint), text_checkpoint, rotated, CPU, how)
    assert [p.kind for p in found.parts] == [p.kind for p in text_found.parts]
    assert found.parts[0].candidates[0].output_error != text_found.parts[0].candidates[0].output_error


def test_a_vision_tower_is_refused(tmp_path: Path) -> None:
    from tests.export.tiny_families import save_vision

    checkpoint = save_vision(tmp_path / "checkpoint", "siglip_vision_model")
    with pytest.raises(UserError, match=r"sensitivity\.kind"):
        measured(checkpoint, tmp_path / "cache")
