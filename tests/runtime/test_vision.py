"""The policy of a package chooses by what a request states and shows; a switch reloads nothing but the encoder."""

import gc
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import hvlc.runtime.generation as generating
import hvlc.runtime.vision as seeing
from hvlc.errors import UserError
from hvlc.inputs.images import to_array
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.manifest.policy import Circumstances
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.settings import VisionSettings
from hvlc.runtime.vision import Vision, statistics_of
from tests.helpers.commands import Hvlc
from tests.helpers.packages import changed_json
from tests.helpers.tiny import picture

POLICY = {
    "default": "base",
    "rules": [
        {"encoder": "large", "task_tag": "ocr"},
        {"encoder": "large", "above_aspect": 5},
        {"encoder": "large", "fits_latency": True},
    ],
    "milliseconds_per_piece": {"large": 10},
}


@pytest.fixture(scope="module")
def ruled(tiny_float32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with rules."""
    package = shutil.copytree(tiny_float32, tmp_path_factory.mktemp("ruled") / "package")
    changed_json(package / MANIFEST, lambda manifest: manifest.update(policy=POLICY))
    return package


@pytest.mark.parametrize(
    ("size", "asked", "encoder"),
    [
        ((40, 40), {}, "base"),
        ((40, 40), {"stated": Circumstances("ocr")}, "large"),
        ((40, 40), {"stated": Circumstances("ocr"), "encoder": "base"}, "base"),
        ((40, 40), {"stated": Circumstances("chat")}, "base"),
        ((20, 120), {}, "large"),
        ((40, 40), {"stated": Circumstances(latency_ms=1000)}, "large"),
        ((40, 40), {"stated": Circumstances(latency_ms=9)}, "base"),
    ],
)
def test_a_request_gets_the_encoder_of_the_rule(ruled: Path, size: tuple[int, int], asked: Any, encoder: str) -> None:
    model = VisionLanguageModel(ruled, threads=1)
    assert model.start("What?", [picture(*size)], max_new_tokens=1, **asked).encoder == encoder


def test_the_command_states_what_the_policy_reads(ruled: Path, tmp_path: Path, hvlc: Hvlc) -> None:
    picture(40, 40).save(tmp_path / "page.png")
    asked = ["run", ruled, "--image", tmp_path / "page.png", "--prompt", "What?", "--max-new-tokens", 1, "--json"]
    assert hvlc(*asked).json["encoder"] == "base"
    assert hvlc(*asked, "--task-tag", "ocr", "--device-class", "phone").json["encoder"] == "large"
    assert hvlc(*asked, "--latency-ms", "1000").json["encoder"] == "large"
    assert hvlc(*asked, "--task-tag", "ocr", "--encoder", "base").json["encoder"] == "base"


def test_statistics_are_of_the_largest_and_longest_image(tiny_float32: Path) -> None:
    vision = Vision(tiny_float32, Manifest.load(tiny_float32), threads=1)
    sizes = [(60, 50), (20, 90)]
    seen = [vision.see(to_array(picture(*size)), compress=True) for size in sizes]
    found = statistics_of(seen)
    assert (found.pixels, found.aspect) == (3000, 4.5)
    assert found.visual_tokens == sum(image.visual_tokens for image in seen)
    assert (found.pieces, found.scale) == (sum(i.count for i in seen), max(i.scale for i in seen))


def test_a_policy_that_names_an_unknown_encoder_is_no_manifest(ruled: Path, tmp_path: Path) -> None:
    package = shutil.copytree(ruled, tmp_path / "package")
    wrong = {"default": "base", "milliseconds_per_piece": {"huge": 1}}
    changed_json(package / MANIFEST, lambda manifest: manifest.update(policy=wrong))
    with pytest.raises(UserError, match="huge") as error:
        Manifest.load(package)
    assert error.value.code == "spec.invalid"


def test_a_switch_opens_the_other_encoder_alone_and_keeps_one(
    tiny_float32: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: Counter[str] = Counter()
    encoders: list[weakref.ref[Any]] = []
    most = 0

    def component(directory: Path, entry: Any, *more: Any) -> Any:
        nonlocal most
        gc.collect()
        opened[entry.file] += 1
        is_encoder = entry.file in manifest.encoders.values()
        living = sum(one() is not None for one in encoders)
        session = open_component(directory, entry, *more)
        if is_encoder:
            encoders.append(weakref.ref(session))
            most = max(most, living + 1)
        return session

    def engine(*given: Any) -> Any:
        opened["language model"] += 1
        return open_engine(*given)

    open_component, open_engine = seeing.open_component, generating.open_engine
    monkeypatch.setattr(seeing, "open_component", component)
    monkeypatch.setattr(generating, "open_engine", engine)
    manifest = Manifest.load(tiny_float32)
    model = VisionLanguageModel(tiny_float32, vision=VisionSettings(feature_cache=0), threads=1)
    base, large = manifest.encoders["base"], manifest.encoders["large"]
    assert (opened[base], opened[large]) == (0, 0)  # none before it is needed
    for encoder in ("base", "base", "large", "large", "base"):
        model.answer("What?", [picture(40, 40)], encoder=encoder, vrc=False, max_new_tokens=1)
    assert (opened[base], opened[large], most) == (2, 1, 1)
    others = {name: count for name, count in opened.items() if name not in (base, large)}
    assert others["language model"] == 1
    assert set(others.values()) == {1}
