"""A package is what onnxruntime-genai and the manifest say it is, byte for byte the same every time."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from hvlc.errors import UserError
from hvlc.files.digests import digest_file
from hvlc.graphs.bundle import Role
from hvlc.graphs.plan import Action
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.results.build import BuildResult
from tests.helpers.tiny import CONTEXT, HIDDEN

BUILDS = ["float32_build", "w4a16_build"]


@pytest.fixture(params=BUILDS)
def built(request) -> BuildResult:
    return request.getfixturevalue(request.param)


def test_the_genai_configuration_is_the_proved_one(tiny_w4a16: Path) -> None:
    config = json.loads((tiny_w4a16 / "genai_config.json").read_text())
    model, cpu = config["model"], {"provider_options": []}
    decoder, vision, embedding = model.pop("decoder"), model.pop("vision"), model.pop("embedding")
    assert model == {
        "type": "gemma3",
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 256,
        "vocab_size": 264,
        "context_length": CONTEXT,
        "image_token_id": 262,
    }
    assert decoder == {
        "filename": "model.onnx",
        "head_size": 16,
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "session_options": {"log_id": "onnxruntime-genai", **cpu},
        "inputs": {
            "inputs_embeds": "inputs_embeds",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    assert vision["filename"] == "vision.onnx"
    assert vision["session_options"] == {"session.disable_prepacking": "1", **cpu}
    assert embedding["session_options"] == cpu  # absent, it would inherit the decoder's
    assert config["search"]["max_length"] == CONTEXT
    assert config["vlm_manifest"] == MANIFEST
    assert set(config) == {"model", "search", "vlm_manifest"}  # an unknown object at the root is an error there


def test_every_graph_is_valid_and_finds_its_weights(built: BuildResult) -> None:
    for entry in built.manifest.components.values():
        onnx.checker.check_model(str(built.output / entry.file))
        graph = onnx.load(built.output / entry.file, load_external_data=False).graph
        for tensor in graph.initializer:
            place = {e.key: e.value for e in tensor.external_data}
            if place:
                end = int(place["offset"]) + int(place["length"])
                assert end <= (built.output / place["location"]).stat().st_size
        known = {v.name for v in [*graph.input, *graph.output]}
        assert known >= {*entry.inputs, *entry.outputs}


def test_the_manifest_lists_every_file_and_verifies(built: BuildResult) -> None:
    manifest = Manifest.load(built.output)
    assert manifest == built.manifest
    assert set(manifest.files) == {p.name for p in built.output.iterdir()} - {MANIFEST}
    assert manifest.total_bytes == sum(p.stat().st_size for p in built.output.iterdir() if p.name != MANIFEST)
    manifest.verify(built.output)


def _stored(built: BuildResult) -> dict[str, int]:
    """Bytes of each planned place as they lie on disk; shared bytes count once."""
    planned = {a.component for a in built.plan.assignments}
    places: dict[tuple[Any, ...], int] = {}
    sizes: dict[str, int] = {}
    for component in planned:
        names = {a.weight for a in built.plan.assignments if a.component == component}
        file = built.output / built.manifest.components[component].file
        for tensor in onnx.load(file, load_external_data=False).graph.initializer:
            stem, _, suffix = tensor.name.rpartition(".")
            kind = suffix.removesuffix("_rows")
            weight = stem if kind in ("int4", "int8", "scales", "zero_points") else tensor.name
            if not set(_joined(weight)) <= names:
                continue
            place = {e.key: e.value for e in tensor.external_data}
            key = (place["location"], place["offset"]) if place else (component, tensor.name)
            if key not in places:
                places[key] = int(place["length"]) if place else len(tensor.raw_data)
                sizes[component] = sizes.get(component, 0) + places[key]
    return sizes


def _joined(weight: str) -> list[str]:
    """The weights behind "a.q_proj+k_proj+v_proj.weight"."""
    path, _, leaf = weight.rpartition(".")
    head, _, projections = path.rpartition(".")
    return [f"{head}.{p}.{leaf}" for p in projections.split("+")] if "+" in projections else [weight]


def test_planned_bytes_are_the_bytes_on_disk(built: BuildResult) -> None:
    assert sum(_stored(built).values()) == built.plan.stored_bytes


def test_decoder_weights_are_really_four_bit(w4a16_build: BuildResult, float32_build: BuildResult) -> None:
    decoder = [a for a in w4a16_build.plan.assignments if a.role is Role.DECODER]
    assert {a.action for a in decoder} == {Action.QUANTIZE}
    elements = sum(a.elements for a in decoder)
    tied = {a.component for a in w4a16_build.plan.assignments if a.action is Action.TIE}
    stored = sum(size for name, size in _stored(w4a16_build).items() if name in tied | {"model"})
    assert stored * 8 / elements == pytest.approx(4.5)
    assert w4a16_build.manifest.bits_per_decoder_weight == pytest.approx(4.5)
    assert float32_build.manifest.bits_per_decoder_weight is None


def test_two_builds_give_the_same_bytes(tiny_checkpoint: Path, built: BuildResult, tmp_path: Path) -> None:
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import open_request

    recipe = built.manifest.sources.recipe_name
    copied = shutil.copytree(tiny_checkpoint, tmp_path / "elsewhere")
    again = build(open_request(copied, "cpu", recipe, tmp_path / "again")).output
    digests = [{p.name: digest_file(p) for p in d.iterdir()} for d in (built.output, again)]
    assert digests[0] == digests[1]


def test_a_build_of_the_same_inputs_is_current_and_of_others_is_not(tiny_w4a16: Path, tiny_checkpoint: Path) -> None:
    from hvlc.workflows.build.build import is_current
    from hvlc.workflows.build.request import open_request

    assert is_current(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", tiny_w4a16))
    assert not is_current(open_request(tiny_checkpoint, "cpu", "float32", tiny_w4a16))
    assert not is_current(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", tiny_w4a16.parent))


Tamper = Callable[[Path], Any]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _edit(package: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = json.loads((package / MANIFEST).read_text())
    change(manifest)
    (package / MANIFEST).write_text(json.dumps(manifest))


OUTSIDE = {"bytes": 3, "sha256": "0" * 64}
TAMPERED: dict[str, tuple[Tamper, str]] = {
    "one bit of a weight": (lambda p: _flip(p / "model.onnx.data"), "package.digest"),
    "one bit of a graph": (lambda p: _flip(p / "front.onnx"), "package.digest"),
    "a file grown": (lambda p: (p / "tokenizer.json").open("a").write(" "), "package.digest"),
    "a file missing": (lambda p: (p / "stitch.onnx").unlink(), "package.incomplete"),
    "a file that became a directory": (
        lambda p: ((p / "stitch.onnx").unlink(), (p / "stitch.onnx").mkdir()),
        "package.incomplete",
    ),
    "a path outside": (lambda p: _edit(p, lambda m: m["files"].update({"../x": OUTSIDE})), "package.escape"),
    "an absolute path": (lambda p: _edit(p, lambda m: m["files"].update({"/etc/passwd": OUTSIDE})), "package.escape"),
    "a component outside": (
        lambda p: _edit(p, lambda m: m["components"]["front"].update(file="../front.onnx")),
        "spec.invalid",
    ),
    "a component without digest": (lambda p: _edit(p, lambda m: m["files"].pop("front.onnx")), "spec.invalid"),
    "an unknown encoder": (lambda p: _edit(p, lambda m: m["policy"].update(default="huge")), "spec.invalid"),
    "another schema": (lambda p: _edit(p, lambda m: m.update(schema_version=3)), "spec.invalid"),
    "an unknown key": (lambda p: _edit(p, lambda m: m.update(colour="red")), "spec.invalid"),
    "no JSON": (lambda p: (p / MANIFEST).write_text("{"), "package.manifest"),
    "no manifest": (lambda p: (p / MANIFEST).unlink(), "package.missing"),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampering_is_found(tiny_float32: Path, tmp_path: Path, case: str) -> None:
    tamper, code = TAMPERED[case]
    package = shutil.copytree(tiny_float32, tmp_path / "package")
    (tmp_path / "x").write_text("abc")
    tamper(package)
    with pytest.raises(UserError) as error:
        Manifest.load(package).verify(package)
    assert error.value.code == code
    assert error.value.fix
