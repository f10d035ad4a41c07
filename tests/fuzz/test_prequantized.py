"""Damaged GPTQ and AWQ checkpoints: the textbook's numbers, a note that says otherwise, or the user's error."""

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint
from hvlc.weights.prequantized.reading import read_parameter
from tests.fuzz.building import check_build
from tests.fuzz.mutation import commands, files
from tests.weights.prequantized.test_contradictions import LAYERS, SHAPE, checkpoint
from tests.weights.prequantized.tiny_quantized import save_grouped

SMALL, LARGE = 40, 3000
COMMANDS, MANY_COMMANDS = 10, 500
AWQ_PLACES = (0, 2, 4, 6, 1, 3, 5, 7)  # the column at each place of a word, lowest bits first

GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}
AWQ: dict[str, Any] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
#: Settings, and how the layers are made that agree with them.
SEEDS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (GPTQ | {"sym": True}, {"symmetric": True}),
    (GPTQ | {"sym": False}, {}),
    (GPTQ | {"sym": True, "checkpoint_format": "gptq_v2"}, {"symmetric": True, "less_one": False}),
    (GPTQ | {"bits": 8, "sym": True}, {"bits": 8, "symmetric": True}),
    (GPTQ | {"bits": 2}, {"bits": 2}),
    (GPTQ | {"desc_act": True}, {"shuffled": True}),
    (GPTQ | {"group_size": -1}, {"group": -1}),
    (AWQ | {"zero_point": True}, {"awq": True}),
]
VALUES = (None, True, False, 0, 1, -1, 2, 3, 4, 8, 16, 32, 48, 96, 128, 2**31, 2**70, 1.5, "", "4", "gptq", "gptq_v2")
VALUES += ("awq", "gemm", "gemv", "marlin", "int8", [], [4], {}, {"bits": 8})  # type: ignore[assignment]
KEYS = (
    "bits group_size sym desc_act checkpoint_format format quant_method version zero_point pack_dtype dynamic "
    "is_marlin_format modules_to_not_convert lm_head w_bit q_group_size"
).split()
PATTERNS = (".*", "+:.*up_proj", "-:.*down_proj", "+:.*\\.1\\..*", "-:.*", "(", "(a+)+b", "", "+:", "x" * 5000)


def textbook(stored: Mapping[str, np.ndarray], path: str, settings: Mapping[str, Any]) -> np.ndarray | None:
    """The weight `[out, in]` of a layer by the formats' definitions, value by value; None: they define none.

    Written from AutoGPTQ's and AutoAWQ's `pack`, for settings that say bits and group as whole numbers.
    """
    awq = str(settings["quant_method"]).lower() == "awq"
    bits, group = int(settings["bits"]), int(settings["group_size"])
    leaves = {leaf: stored.get(f"{path}.{leaf}") for leaf in ("qweight", "qzeros", "scales", "g_idx")}
    words, zero_words, scales, order = (leaves[leaf] for leaf in ("qweight", "qzeros", "scales", "g_idx"))
    if words is None or zero_words is None or scales is None:
        return None
    one = 0 if awq or form(settings) == "gptq_v2" else sum(1 << place for place in range(0, 32, bits))
    fields, mask = 32 // bits, (1 << bits) - 1
    places = AWQ_PLACES if awq else tuple(range(fields))
    into, out = (words.shape[0], words.shape[1] * fields) if awq else (words.shape[0] * fields, words.shape[1])
    group = into if group == -1 else group

    def field(word: int, index: int) -> int:
        return word % 2**32 >> bits * places.index(index) & mask

    weight = np.zeros((out, into), np.float64)
    for column in range(into):
        number = int(order[column]) if order is not None and not awq else column // group
        for row in range(out):
            level = int(words[column, row // fields] if awq else words[column // fields, row])
            at = row % fields if awq else column % fields
            zero = field(int(zero_words[number, row // fields]) + one, row % fields)
            weight[row, column] = (field(level, at) - zero) * float(scales[number, row])
    return weight.astype(np.float32)


def form(settings: Mapping[str, Any]) -> str:
    """Transformers' order of the keys that name GPTQ's layout."""
    return str(settings.get("checkpoint_format") or settings.get("format") or "gptq").lower()


def other_form(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "checkpoint_format": "gptq" if form(settings) == "gptq_v2" else "gptq_v2"}


def damaged_settings(settings: Mapping[str, Any], source: random.Random) -> dict[str, Any]:
    found = other_form(settings) if source.random() < 0.2 else dict(settings)
    for _ in range(source.randint(0, 2)):
        key = source.choice(KEYS)
        match source.randrange(4):
            case 0:
                found.pop(key, None)
            case 1:
                found["dynamic"] = {source.choice(PATTERNS): source.choice(({}, {"bits": 8}, {"sym": True}, 3, None))}
            case _:
                found[key] = source.choice(VALUES)
    return found


def damaged_tensors(stored: Mapping[str, np.ndarray], source: random.Random) -> dict[str, np.ndarray]:
    found = {name: value.copy() for name, value in stored.items()}
    for _ in range(source.randint(0, 2)):
        name = source.choice(sorted(found))
        value = found[name]
        match source.randrange(8):
            case 0:
                del found[name]
                if not found:
                    return {name: value}
            case 1 | 2 | 3:
                flat = value.reshape(-1)
                draw = np.random.default_rng(source.randrange(2**32))
                at = draw.integers(0, flat.size, 3) if flat.size else []
                flat[at] = draw.integers(0, 15, 3) if name.endswith("g_idx") else draw.integers(-(2**15), 2**15, 3)
            case 4:
                found[name] = value[: len(value) // 2].copy()
            case 5:
                found[name] = value.astype(source.choice((np.int64, np.float32, np.uint8, np.bool_)))
            case 6:
                found[name] = value.reshape(1, *value.shape)
            case _:
                found[name] = np.zeros_like(value)
    return found


def judge(directory: Path, stored: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> str:
    """How reading ends: "refused", "noted" or "right"; the numbers of the latter two are the textbook's.

    Raises:
        AssertionError: other numbers than the textbook's, without a note.
    """
    try:
        opened = Checkpoint.open(directory)
        found = {path: read_parameter(opened, f"{path}.weight") for path in LAYERS}
        values = {
            path: matrix.box(tuple(slice(0, size) for size in matrix.shape))
            for path, matrix in found.items()
            if matrix is not None
        }
    except UserError:
        return "refused"
    for path, numbers in values.items():
        layer = settings | overridden(path, settings.get("dynamic"))
        expected = textbook(stored, path, other_form(layer) if opened.notes else layer)
        assert expected is not None, (path, settings)
        assert np.array_equal(numbers, expected, equal_nan=True), (path, settings)
        if layer.get("sym") is True and np.isfinite(expected).all():
            assert_symmetric(opened, path, layer)
    return "noted" if opened.notes else "right"


def overridden(path: str, dynamic: Any) -> dict[str, Any]:
    """GPTQModel's settings of a layer, for the patterns that are drawn here."""
    for pattern, values in (dynamic if isinstance(dynamic, dict) else {}).items():
        name = pattern.removeprefix("+:")
        fits = {"": True, ".*": True, ".*up_proj": "up_proj" in path, ".*\\.1\\..*": ".1." in path}.get(name, False)
        if fits:
            return dict(values)
    return {}


def assert_symmetric(opened: Checkpoint, path: str, layer: Mapping[str, Any]) -> None:
    """What the settings call symmetric has the middle level as zero: levels of the middle are weights of 0."""
    matrix: Any = read_parameter(opened, f"{path}.weight")
    zeros = matrix.zero_points(0, matrix.shape[0])
    assert (zeros == 1 << int(layer["bits"]) - 1).all()


def runs(directory: Path, count: int, seed: int) -> dict[str, int]:
    ends: dict[str, int] = {}
    wholes = []
    for number, (settings, made) in enumerate(SEEDS):
        opened, _ = checkpoint(directory / f"seed{number}", settings, lambda path, made=made: made)  # type: ignore[misc]
        wholes.append((settings, load_file(opened.files[0])))
    target = directory / "damaged"
    target.mkdir()
    for case in range(count):
        source = random.Random(f"{seed} {case}")
        settings, whole = wholes[case % len(wholes)]
        settings, stored = damaged_settings(settings, source), damaged_tensors(whole, source)
        save_file(stored, target / "model.safetensors")
        (target / "config.json").write_text(json.dumps({"model_type": "llama", "quantization_config": settings}))
        end = judge(target, stored, settings)
        ends[end] = ends.get(end, 0) + 1
    return ends


def test_damaged_checkpoints_give_the_textbooks_numbers_or_are_refused(tmp_path: Path) -> None:
    ends = runs(tmp_path, SMALL, 1)
    assert sum(ends.values()) == SMALL
    assert set(ends) >= {"right", "refused"}


@pytest.mark.slow
def test_many_damaged_checkpoints_give_the_textbooks_numbers_or_are_refused(tmp_path: Path) -> None:
    ends = runs(tmp_path, LARGE, 2)
    assert sum(ends.values()) == LARGE
    assert set(ends) == {"right", "noted", "refused"}


def test_the_textbook_finds_numbers_that_are_off_by_one(tmp_path: Path) -> None:
    settings, made = SEEDS[1]
    opened, weights = checkpoint(tmp_path, settings, lambda path: made)
    stored = load_file(opened.files[0])
    assert np.array_equal(textbook(stored, LAYERS[0], settings), weights[LAYERS[0]])  # type: ignore[arg-type]
    with pytest.raises(AssertionError):
        judge(tmp_path, stored, other_form(settings))
    assert weights[LAYERS[0]].shape == SHAPE


def plans(scratch: Path, count: int, seed: int) -> dict[int, int]:
    """Plan whole damaged checkpoints; how often each exit code was."""
    save_grouped(scratch / "whole", {"quant_method": "gptq", "bits": 4, "group_size": 64})
    config = json.loads((scratch / "whole" / "config.json").read_text())
    stored = load_file(scratch / "whole" / "model.safetensors")
    codes: dict[int, int] = {}
    with commands(scratch) as hvlc:
        for case in range(count):
            source = random.Random(f"{seed} {case}")
            settings = damaged_settings(config["quantization_config"], source)
            changed = config | {"quantization_config": source.choice((settings, settings, settings, [], 3, "gptq"))}
            (scratch / "whole" / "config.json").write_text(json.dumps(changed))
            save_file(damaged_tensors(stored, source), scratch / "whole" / "model.safetensors")
            before = files(scratch)
            ended = hvlc.run("plan", scratch / "whole", "--recipe", "genai-default")
            check_build(ended)
            assert files(scratch) == before
            codes[ended.code] = codes.get(ended.code, 0) + 1
    return codes


def test_plans_of_damaged_checkpoints_end_well(tmp_path: Path) -> None:
    assert sum(plans(tmp_path, COMMANDS, 3).values()) == COMMANDS


@pytest.mark.slow
def test_many_plans_of_damaged_checkpoints_end_well(tmp_path: Path) -> None:
    codes = plans(tmp_path, MANY_COMMANDS, 4)
    assert sum(codes.values()) == MANY_COMMANDS
    assert set(codes) >= {0, 2}
