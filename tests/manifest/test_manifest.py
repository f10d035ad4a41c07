"""A manifest has what its kind needs, nothing of another kind, and an older one is named as such."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.graphs.facts import Kind
from hvlc.manifest.manifest import MANIFEST, Manifest

COMPONENTS = {
    Kind.VISION_LANGUAGE: ("front", "stitch", "embedding", "model", "vision", "vision_base"),
    Kind.LANGUAGE: ("model",),
    Kind.VISION: ("vision",),
}
FACTS: dict[Kind, dict[str, Any]] = {
    Kind.VISION_LANGUAGE: {
        "encoders": {"base": "vision_base.onnx"},
        "policy": {"default": "base"},
        "tiles": {
            "tile_size": 32,
            "cell_size": 16,
            "max_visual_tokens": 9,
            "min_scale": 0.1,
            "resolution_compressor": True,
        },
        "tokens": {
            "image": 1,
            "row": 2,
            "vision_start": 3,
            "vision_end": 4,
            "image_text": "<image>",
            "row_text": "<row>",
        },
        "context_length": 64,
        "trained_context_length": 128,
    },
    Kind.LANGUAGE: {"context_length": 64, "trained_context_length": 64},
    Kind.VISION: {
        "preprocessing": {
            "image_size": 32,
            "patch_size": 8,
            "mean": None,
            "std": None,
            "rescale_factor": None,
            "resample": None,
        }
    },
}


def content(kind: Kind) -> dict[str, Any]:
    """A whole manifest of a kind."""
    names = {name: f"{name}.onnx" for name in COMPONENTS[kind]}
    texts = ("model_type", "checkpoint", "recipe_name", "recipe", "target_name", "target", "code")
    return {
        "schema_version": 1,
        "kind": str(kind),
        "sources": {**dict.fromkeys(texts, "x"), "versions": {}},
        "components": {name: {"file": file, "role": "x", "inputs": [], "outputs": []} for name, file in names.items()},
        "hidden_size": 64,
        "bits_per_decoder_weight": None,
        "files": {file: {"bytes": 1, "sha256": "0"} for file in names.values()},
        **FACTS[kind],
    }


def load(directory: Path, manifest: Any) -> Manifest:
    (directory / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    return Manifest.load(directory)


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_survives_a_round_trip(tmp_path: Path, kind: Kind) -> None:
    manifest = load(tmp_path, content(kind))
    assert manifest.kind is kind
    assert load(tmp_path, manifest.model_dump(mode="json")) == manifest


@pytest.mark.parametrize(("kind", "fact"), [(kind, fact) for kind in Kind for fact in FACTS[kind]])
def test_a_fact_that_the_kind_needs_may_not_lack(tmp_path: Path, kind: Kind, fact: str) -> None:
    for empty in ({}, {fact: None}) if fact != "encoders" else ({}, {fact: {}}):
        manifest = {k: v for k, v in content(kind).items() if k != fact} | empty
        if fact == "encoders":
            manifest["policy"] = None
        with pytest.raises(UserError, match=f"needs .*{fact}") as error:
            load(tmp_path, manifest)
        assert error.value.code == "spec.invalid"


@pytest.mark.parametrize(
    ("kind", "fact"),
    [(kind, f) for kind in Kind for f in {f for o in Kind for f in FACTS[o]} - set(FACTS[kind])],
)
def test_a_fact_of_another_kind_is_refused(tmp_path: Path, kind: Kind, fact: str) -> None:
    other = next(o for o in Kind if fact in FACTS[o])
    with pytest.raises(UserError) as error:
        load(tmp_path, content(kind) | {fact: FACTS[other][fact]})
    assert error.value.code == "spec.invalid"


@pytest.mark.parametrize("kind", Kind)
def test_a_component_that_the_kind_needs_may_not_lack(tmp_path: Path, kind: Kind) -> None:
    manifest = content(kind)
    del manifest["components"][COMPONENTS[kind][0]]
    with pytest.raises(UserError, match=f"no component {COMPONENTS[kind][0]}"):
        load(tmp_path, manifest)


OLD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no kind": (lambda m: {k: v for k, v in m.items() if k != "kind"}, "package.manifest"),
    "an unknown kind": (lambda m: m | {"kind": "audio"}, "spec.invalid"),
    "no kind and nothing else": (lambda m: {}, "package.manifest"),
    "no mapping": (lambda m: [m], "spec.invalid"),
}


@pytest.mark.parametrize("case", OLD)
def test_a_manifest_of_another_time_is_an_error_with_a_way_out(tmp_path: Path, case: str) -> None:
    change, code = OLD[case]
    with pytest.raises(UserError) as error:
        load(tmp_path, change(content(Kind.VISION_LANGUAGE)))
    assert error.value.code == code
    assert error.value.fix
