"""genai_config.json says what hvlc writes, or the package is refused; the runtime is given a record of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from hvlc.errors import UserError
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.opening.configuration import CONFIGURATION, TEXT_TYPES, Configuration, read_configuration
from hvlc.opening.options import check_options
from hvlc.targets import load_target
from tests.export.tiny_families import VISION_LANGUAGE
from tests.helpers.packages import changed_json, renewed
from tests.helpers.targets import SNAPDRAGONS


@pytest.fixture
def copied(tiny_w4a16: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_w4a16, tmp_path / "package")


def read(package: Path) -> Any:
    return json.loads(read_configuration(package, Manifest.load(package)).text())


def test_the_record_says_what_the_file_says(tiny_w4a16: Path) -> None:
    assert read(tiny_w4a16) == json.loads((tiny_w4a16 / CONFIGURATION).read_text("utf-8"))


def options(**more: Any) -> Callable[[Any], None]:
    return lambda c: c["model"]["decoder"]["session_options"].update(more)


HOSTILE: dict[str, Callable[[Any], Any]] = {
    "a library of operators": options(custom_ops_library="evil.so"),
    "a profile": options(enable_profiling="/tmp/profile"),
    "a log": options(log_severity_level=0),
    "threads": options(intra_op_num_threads=10**9),
    "entries of a session": options(config_entries={"ep.context_file_path": "/tmp/x"}),
    "a provider": options(provider_options=[{"QNN": {"backend_path": "evil.so"}}]),
    "a provider that the manifest does not name": options(provider_options=[{"XNNPACK": {}}]),
    "a library of the vision graph": lambda c: c["model"]["vision"]["session_options"].update(custom_ops_library="x"),
    "a library of the embedding": lambda c: c["model"]["embedding"]["session_options"].update(custom_ops_library="x"),
    "run options": lambda c: c["model"]["decoder"].update(run_options={"x": "y"}),
    "another graph": lambda c: c["model"]["decoder"].update(filename="front.onnx"),
    "a graph outside": lambda c: c["model"]["decoder"].update(filename="../model.onnx"),
    "an adapter": lambda c: c["model"]["vision"].update(adapter_filename="x"),
    "a processor": lambda c: c["model"]["vision"].update(config_filename="x.json"),
    "speech": lambda c: c["model"].update(speech={"filename": "x"}),
    "an encoder": lambda c: c["model"].update(encoder={"filename": "x"}),
    "another type": lambda c: c["model"].update(type="whisper"),
    "a text type": lambda c: c["model"].update(type="llama"),
    "a key at the root": lambda c: c.update(engine={"x": 1}),
    "sampling": lambda c: c["search"].update(do_sample=True),
    "beams": lambda c: c["search"].update(num_beams=1000),
    "a longer context": lambda c: c["model"].update(context_length=2**30),
    "a longer search": lambda c: c["search"].update(max_length=2**31),
    "no tokens": lambda c: c["model"].update(vocab_size=0),
    "another image token": lambda c: c["model"].update(image_token_id=1),
    "a token as text": lambda c: c["model"].update(eos_token_id="x"),
    "no end": lambda c: c["model"].update(eos_token_id=[]),
    "a name of an input": lambda c: c["model"]["decoder"]["inputs"].update(past_key_names="%n%n%n"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_hvlc_does_not_write_is_refused(copied: Path, case: str) -> None:
    changed_json(copied / CONFIGURATION, HOSTILE[case])
    with pytest.raises(UserError) as error:
        read(renewed(copied))
    assert error.value.code == "package.configuration"


SMUGGLED: dict[str, Callable[[str], str]] = {
    "a key twice": lambda text: text.replace('"search":', '"search": {}, "search":'),
    "bytes after the end": lambda text: text + "\0\0",
    "a list": lambda text: f"[{text}]",
    "a comment": lambda text: "// hello\n" + text,
    "not a number": lambda text: text.replace('"top_p": 1.0', '"top_p": NaN'),
    "infinity": lambda text: text.replace('"temperature": 1.0', '"temperature": Infinity'),
}


@pytest.mark.parametrize("case", SMUGGLED)
def test_parsers_that_differ_smuggle_nothing(copied: Path, case: str) -> None:
    path = copied / CONFIGURATION
    before = path.read_text("utf-8")
    path.write_text(SMUGGLED[case](before), "utf-8")
    assert path.read_text("utf-8") != before
    with pytest.raises(UserError) as error:
        read(renewed(copied))
    assert error.value.code == "package.configuration"


def test_a_configuration_that_is_not_listed_is_not_read(copied: Path) -> None:
    changed_json(copied / MANIFEST, lambda manifest: manifest["files"].pop(CONFIGURATION))
    with pytest.raises(UserError, match="lists no"):
        read(copied)


@pytest.mark.parametrize("name", ["coreml-ane", "openvino-npu", "webgpu", "xnnpack"])
def test_options_of_the_shipped_targets_are_known(name: str) -> None:
    target = load_target(name)
    assert target.provider_name is not None
    check_options(name, target.provider_name, target.provider_options)


@pytest.mark.parametrize("name", SNAPDRAGONS)
def test_options_of_compiled_graphs_are_known(name: str) -> None:
    from hvlc.qnn.compiler import CompileOptions

    check_options(name, "QNN", CompileOptions.of(load_target(name)).running())


@pytest.mark.parametrize(
    ("provider", "given"),
    [
        ("QNN", {"backend_path": "libevil.so"}),
        ("QNN", {"profiling_file_path": "/tmp/x"}),
        ("QNN", {"profiling_level": "detailed"}),
        ("QNN", {"dump_qnn_ir_dlc_dir": "/tmp"}),
        ("QNN", {"htp_performance_mode": "burst;/bin/sh"}),
        ("QNN", {"soc_model": "69\n"}),
        ("OpenVINO", {"cache_dir": "/tmp"}),
        ("OpenVINO", {"load_config": "/tmp/x.json"}),
        ("OpenVINO", {"device_type": "NPU,/tmp/x"}),
        ("CoreML", {"ModelCacheDirectory": "/tmp"}),
        ("TensorRT", {"trt_engine_cache_path": "/tmp"}),
        ("cuda", {}),
    ],
)
def test_options_that_load_or_write_are_refused(provider: str, given: dict[str, str]) -> None:
    with pytest.raises(UserError) as error:
        check_options("model", provider, given)
    assert error.value.code == "package.configuration"


def test_types_of_text_decoders_are_the_families_that_are_exported() -> None:
    from importlib import resources

    families = {path.name.removesuffix(".py") for path in resources.files("hvlc.export.families").iterdir()}
    assert {name for name in families if name in TEXT_TYPES} == set(TEXT_TYPES)
    assert families - set(TEXT_TYPES) - {"__init__", "__pycache__", *VISION_LANGUAGE} == {
        name for name in families if name.startswith("siglip")
    }


def test_types_that_are_written_are_read() -> None:
    kinds = get_args(Configuration.model_fields["model"].annotation.model_fields["type"].annotation)  # type: ignore[union-attr]
    assert set(TEXT_TYPES.values()) <= set(kinds)
