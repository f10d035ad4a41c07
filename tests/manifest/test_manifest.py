"""A manifest has what its kind needs, nothing of another kind, and an older one is named as such."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hvlc.errors import UserError
from hvlc.graphs.facts import Kind
from hvlc.manifest.manifest import MANIFEST, SCHEMA, Manifest

COMPONENTS = {
    Kind.VISION_LANGUAGE: ("front", "stitch", "embedding", "model", "vision", "vision_base"),
    Kind.LANGUAGE: ("model",),
    Kind.VISION: ("vision",),
}
FACTS: dict[Kind, dict[str, Any]] = {
    Kind.VISION_LANGUAGE: {
        "encoders": {"base": "vision_base.onnx"},
        "policy": {"default": "base"},
        "images": {
            "rule": "raster_tiles",
            "token": 1,
            "start": 3,
            "placeholder": "<image>",
            "max_visual_tokens": 9,
            "piece": [32, 32],
            "tokens_per_piece": 4,
            "resolution_compressor": False,
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
        "schema_version": SCHEMA,
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
    [(kind, f) for kind in Kind for f in sorted({f for o in Kind for f in FACTS[o]} - set(FACTS[kind]))],
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


COMPRESSOR = {"resolution_compressor": True, "min_scale": 0.1}
TWO = {"base": "vision_base.onnx", "large": "vision_large.onnx"}


def seeing(encoders: dict[str, str], variants: dict[str, Any], **images: Any) -> dict[str, Any]:
    """A manifest of a model that sees, with these encoders and variants."""
    manifest = content(Kind.VISION_LANGUAGE)
    for name, file in encoders.items():
        manifest["components"][f"vision_{name}"] = {"file": file, "role": "x", "inputs": [], "outputs": []}
        manifest["files"][file] = {"bytes": 1, "sha256": "0"}
    images = manifest["images"] | images
    return manifest | {"encoders": encoders, "variants": variants, "images": images}


@pytest.mark.parametrize(
    ("encoders", "images", "variants"),
    [
        ({"base": "vision_base.onnx"}, {}, {}),
        (TWO, {}, {"encoder": ["base", "large"]}),
        ({"base": "vision_base.onnx"}, COMPRESSOR, {"vrc": ["on", "off"]}),
        (TWO, COMPRESSOR, {"encoder": ["base", "large"], "vrc": ["on", "off"]}),
    ],
)
def test_variants_are_the_choices_that_there_are(
    tmp_path: Path, encoders: dict[str, str], images: dict[str, Any], variants: dict[str, Any]
) -> None:
    manifest = load(tmp_path, seeing(encoders, variants, **images))
    assert {name: list(values) for name, values in manifest.variants.items()} == variants
    assert load(tmp_path, manifest.model_dump(mode="json")) == manifest


@pytest.mark.parametrize(
    ("encoders", "images", "variants"),
    [
        (TWO, {}, {}),  # a choice that is not offered
        (TWO, {}, {"encoder": ["base"]}),
        (TWO, {}, {"encoder": ["large", "base"]}),  # an encoder's number is its place
        (TWO, {}, {"encoder": ["base", "large", "huge"]}),
        ({"base": "vision_base.onnx"}, {}, {"encoder": ["base"]}),
        ({"base": "vision_base.onnx"}, {}, {"vrc": ["on", "off"]}),  # there is no compressor
        ({"base": "vision_base.onnx"}, COMPRESSOR, {"vrc": ["off", "on"]}),
        ({"base": "vision_base.onnx"}, COMPRESSOR, {}),
        ({"base": "vision_base.onnx"}, {}, {"thinking": ["on", "off"]}),
    ],
)
def test_variants_that_contradict_the_package_are_refused(
    tmp_path: Path, encoders: dict[str, str], images: dict[str, Any], variants: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match="variants are not those of its encoders and its compressor") as error:
        load(tmp_path, seeing(encoders, variants, **images))
    assert error.value.code == "spec.invalid"


@pytest.mark.parametrize("kind", [Kind.LANGUAGE, Kind.VISION])
def test_variants_of_a_package_that_sees_no_images_are_refused(tmp_path: Path, kind: Kind) -> None:
    with pytest.raises(UserError, match="variants"):
        load(tmp_path, content(kind) | {"variants": {"encoder": ["base", "large"]}})


@pytest.mark.parametrize(
    "change",
    [
        {"token": -1},
        {"placeholder": ""},
        {"max_visual_tokens": 0},
        {"piece": [32]},
        {"piece": [0, 32]},
        {"tokens_per_piece": 0},
        {"min_scale": 0},
        {"min_scale": 1.5},
        {"rule": "../x"},
        {"row": 2},
    ],
)
def test_images_that_no_front_graph_makes_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    manifest = content(Kind.VISION_LANGUAGE)
    with pytest.raises(UserError) as error:
        load(tmp_path, manifest | {"images": manifest["images"] | change})
    assert error.value.code == "spec.invalid"


def test_pieces_may_follow_the_image(tmp_path: Path) -> None:
    manifest = content(Kind.VISION_LANGUAGE)
    free = manifest["images"] | {"piece": None, "tokens_per_piece": None}
    images = load(tmp_path, manifest | {"images": free}).images
    assert images is not None
    assert (images.piece, images.tokens_per_piece, images.before, images.after) == (None, None, "", "")


#: What manifests of schema version 1 had where now `images` and `variants` are.
FIRST: dict[str, Any] = {
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
}


def first(kind: Kind) -> dict[str, Any]:
    """A manifest as schema version 1 had it: null stood where there was nothing."""
    old = FIRST if kind is Kind.VISION_LANGUAGE else dict.fromkeys(FIRST)
    kept = {name: value for name, value in content(kind).items() if name not in ("images", "variants")}
    return kept | {"schema_version": 1} | old


def test_a_package_of_sight_of_the_first_schema_is_built_again(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="an older hvlc wrote") as error:
        load(tmp_path, first(Kind.VISION_LANGUAGE))
    assert error.value.code == "package.manifest"
    assert error.value.fix == "build the package again"


@pytest.mark.parametrize("kind", [Kind.LANGUAGE, Kind.VISION])
def test_other_packages_of_the_first_schema_are_read(tmp_path: Path, kind: Kind) -> None:
    manifest = load(tmp_path, first(kind))
    assert (manifest.schema_version, manifest.kind) == (1, kind)
    assert manifest.model_copy(update={"schema_version": SCHEMA}) == load(tmp_path, content(kind))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("fact", FIRST)
def test_facts_of_the_first_schema_are_nothing_in_the_second(tmp_path: Path, kind: Kind, fact: str) -> None:
    for value in (None, FIRST[fact]):
        with pytest.raises(UserError, match=fact) as error:
            load(tmp_path, content(kind) | {fact: value})
        assert error.value.code == "spec.invalid"


def test_tiles_of_a_package_that_sees_nothing_are_refused_in_the_first_schema_too(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tiles") as error:
        load(tmp_path, first(Kind.LANGUAGE) | {"tiles": FIRST["tiles"]})
    assert error.value.code == "spec.invalid"


@pytest.mark.parametrize("version", [0, SCHEMA + 1])
def test_another_schema_is_refused(tmp_path: Path, version: int) -> None:
    with pytest.raises(UserError, match="schema_version") as error:
        load(tmp_path, content(Kind.LANGUAGE) | {"schema_version": version})
    assert error.value.code == "spec.invalid"


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
