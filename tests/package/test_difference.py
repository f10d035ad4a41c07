"""Every difference between two packages is found, under the right name, and no other."""

import json
import shutil
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from rich.console import Console

from hvlc import cli
from hvlc.errors import UserError
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.package.difference import difference
from hvlc.package.distance import distance
from hvlc.report.difference import difference_tables, summary
from hvlc.results.difference import ComponentDifference, Difference
from tests.helpers.faults import FAULTS, planted


@pytest.fixture
def copy(tiny_w4a16: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_w4a16, tmp_path / "copy"))


def component(found: Difference, name: str) -> ComponentDifference:
    return next(one for one in found.components if one.name == name)


def others_identical(found: Difference, *names: str) -> bool:
    return all(c.likeness == "identical" for c in found.components if c.name not in names)


def edit(package: Path, change: Callable[[onnx.ModelProto], None], file: str = "model.onnx") -> None:
    model = onnx.load(package / file, load_external_data=False)
    change(model)
    onnx.save(model, package / file)


def shown(found: Difference, **options: Any) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(difference_tables(found, **{"details": True, **options}))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_a_copy_is_identical_to_the_last_byte(tiny_w4a16: Path, copy: Path) -> None:
    found = difference(tiny_w4a16, copy)
    assert found.identical
    assert found.equivalent
    assert others_identical(found)
    assert not found.settings
    assert "identical to the last byte" in summary(found)


def test_a_rebuilt_package_is_identical(tiny_checkpoint: Path, tiny_w4a16: Path, tmp_path: Path) -> None:
    from hvlc.workflows.build.build import build
    from hvlc.workflows.build.request import open_request

    again = build(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", tmp_path / "again")).output
    assert difference(tiny_w4a16, again).identical


def rename(model: onnx.ModelProto) -> None:
    """Every node, value and initializer but the interface."""
    keep = {v.name for v in (*model.graph.input, *model.graph.output)} | {""}
    new = {}

    def fresh(name: str) -> str:
        return name if name in keep else new.setdefault(name, f"r{len(new)}")

    for tensor in model.graph.initializer:
        tensor.name = fresh(tensor.name)
    for k, node in enumerate(model.graph.node):
        node.name = f"node{k}"
        node.input[:] = [fresh(n) for n in node.input]
        node.output[:] = [fresh(n) for n in node.output]
    del model.graph.value_info[:]
    model.graph.name = "renamed"


def test_a_renamed_graph_is_equal_but_for_names(tiny_w4a16: Path, copy: Path) -> None:
    edit(copy, rename)
    found = difference(tiny_w4a16, copy)
    model = component(found, "model")
    assert (model.likeness, model.tensors, model.changed) == ("names", (), ())
    assert model.renamed == model.nodes[0] > 0
    assert not found.identical
    assert found.equivalent
    assert "equal but for names" in summary(found)


def test_a_changed_attribute_is_named(tiny_w4a16: Path, copy: Path) -> None:
    def narrower(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "GroupQueryAttention")
        node.attribute.append(helper.make_attribute("softcap", 30.0))

    edit(copy, narrower)
    found = difference(tiny_w4a16, copy)
    model = component(found, "model")
    assert model.likeness == "structure"
    (change,) = model.changed
    assert (change.a, change.b) == ("com.microsoft.GroupQueryAttention",) * 2
    assert change.place.endswith("layers.0.self_attn")
    assert [(v.key, v.a, v.b) for v in change.attributes] == [("softcap", None, "30.0")]
    assert not model.tensors
    assert "softcap" in shown(found)
    assert others_identical(found, "model")


def test_an_added_node_is_named(tiny_w4a16: Path, copy: Path) -> None:
    def doubled(model: onnx.ModelProto) -> None:
        node = next(n for n in model.graph.node if n.op_type == "Sigmoid")
        output, node.output[0] = node.output[0], "before"
        model.graph.node.insert(
            list(model.graph.node).index(node) + 1, helper.make_node("Relu", ["before"], [output], name="extra")
        )

    edit(copy, doubled)
    (change,) = component(difference(tiny_w4a16, copy), "model").changed
    assert (change.place, change.a, change.b) == ("extra", None, "Relu")


def scaled(package: Path, name: str, factor: float) -> None:
    """Scale an initializer in the data file."""
    model = onnx.load(package / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    place = {e.key: e.value for e in tensor.external_data}
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    with (package / place["location"]).open("r+b") as file:
        file.seek(int(place["offset"]))
        values = np.frombuffer(file.read(int(place["length"])), dtype) * np.array(factor, dtype)
        file.seek(int(place["offset"]))
        file.write(values.astype(dtype).tobytes())


@pytest.mark.parametrize(
    ("stored", "name", "dequantized"),
    [
        (
            "model.language_model.layers.1.mlp.up_proj.weight.scales",
            "model.language_model.layers.1.mlp.up_proj.weight",
            True,
        ),
        ("model.language_model.norm.weight", "model.language_model.norm.weight", False),
    ],
)
def test_a_scaled_weight_is_named_with_its_distance(
    tiny_w4a16: Path, copy: Path, stored: str, name: str, dequantized: bool
) -> None:
    model = onnx.load(copy / "model.onnx", load_external_data=False)
    tensor = next(t for t in model.graph.initializer if t.name == stored)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        scaled(copy, stored, 1.5)
    else:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.5), stored))
        onnx.save(model, copy / "model.onnx")
    found = difference(tiny_w4a16, copy)
    model_ = component(found, "model")
    assert model_.likeness == "weights"
    (change,) = model_.tensors
    assert (change.name, change.dequantized) == (name, dequantized)
    assert change.relative_error == pytest.approx(0.5, rel=1e-3)
    assert others_identical(found, "model")


def test_quantization_is_told_by_weight(tiny_float32: Path, tiny_w4a16: Path) -> None:
    found = difference(tiny_float32, tiny_w4a16)
    model = component(found, "model")
    assert model.likeness == "structure"
    assert all(t.dequantized and t.a and t.b for t in model.tensors)
    assert all(0 < (t.relative_error or 0) < 0.3 for t in model.tensors)
    assert {(c.a, c.b) for c in model.changed if c.a and c.b} == {("MatMul", "com.microsoft.MatMulNBits")}
    assert {c.b for c in model.changed if not c.a} == {"Cast"}
    assert found.settings.keys() >= {"recipe", "manifest"}
    assert any(v.key == "name" and v.b == '"w4a16-rtn"' for v in found.settings["recipe"])


def write_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_swapped_token_ids_are_named(tiny_w4a16: Path, tmp_path: Path) -> None:
    found = difference(tiny_w4a16, planted("swapped token ids", tiny_w4a16, tmp_path / "p"))
    changes = {c.key: (c.a, c.b) for c in found.tokenizer}
    assert set(changes) == {"vocab['t']", "vocab['e']"}
    assert changes["vocab['t']"] == changes["vocab['e']"][::-1]
    assert others_identical(found)


def test_merges_special_tokens_and_template_are_compared(tiny_w4a16: Path, copy: Path) -> None:
    def tokens(content: Any) -> None:
        content["added_tokens"][0]["lstrip"] = True
        content["model"]["merges"] = [["a", "b"]]
        content["normalizer"] = {"type": "NFC"}

    write_json(copy / "tokenizer.json", tokens)
    template = copy / "chat_template.jinja"
    template.write_text(template.read_text() + "\nmore")
    write_json(copy / "tokenizer_config.json", lambda c: c.update(model_max_length=7))
    keys = [c.key for c in difference(tiny_w4a16, copy).tokenizer]
    assert any(k.startswith("added_tokens[") for k in keys)
    assert "merges['a b']" in keys
    assert any(k.startswith("normalizer") for k in keys)
    assert "tokenizer_config.model_max_length" in keys
    assert any(k.startswith("chat_template line") for k in keys)


def test_a_changed_configuration_key_is_named(tiny_w4a16: Path, copy: Path) -> None:
    write_json(copy / "genai_config.json", lambda c: c["search"].update(max_length=3))
    found = difference(tiny_w4a16, copy)
    assert [(c.key, c.b) for c in found.settings["genai_config.json"]] == [("search.max_length", "3")]
    assert not found.equivalent
    assert others_identical(found)


def test_a_missing_component_is_named(tiny_w4a16: Path, copy: Path) -> None:
    manifest = Manifest.load(copy)
    left = {n: e for n, e in manifest.components.items() if n != "vision_base"}
    (copy / MANIFEST).write_text(manifest.model_copy(update={"components": left}).model_dump_json())
    found = difference(tiny_w4a16, copy)
    assert component(found, "vision_base").likeness == "only in A"
    assert component(difference(copy, tiny_w4a16), "vision_base").likeness == "only in B"


def test_a_stray_file_is_a_difference(tiny_w4a16: Path, copy: Path) -> None:
    (copy / "notes.txt").write_text("x")
    found = difference(tiny_w4a16, copy)
    assert [f.name for f in found.files] == ["notes.txt"]
    assert not found.identical


WHERE = {
    "scaled projector weight": ({"vision_base", "vision_large", "vision_fused"}, "projector.linear_"),
    "swapped decoder layers": ({"model"}, ".layers.0."),
    "wrong image mean": ({"front"}, ""),
    "shifted positions": ({"vision_base", "vision_large", "vision_fused"}, "position_embedding.weight"),
    "dropped tile": ({"front"}, ""),
    "wrong int4 scales": ({"model"}, ".layers.1."),
}


@pytest.mark.parametrize("fault", WHERE)
def test_planted_faults_are_found_where_they_are(fault: str, tiny_w4a16: Path, tmp_path: Path) -> None:
    assert set(FAULTS) - set(WHERE) == {"swapped token ids"}
    found = difference(tiny_w4a16, planted(fault, tiny_w4a16, tmp_path / "p"))
    components, name = WHERE[fault]
    assert {c.name for c in found.components if c.likeness != "identical"} <= components
    differing = [c for c in found.components if c.likeness != "identical"]
    if fault == "dropped tile":
        assert {c.likeness for c in differing} == {"structure"}
        added = {n.b for n in differing[0].changed if n.a is None}
        assert {"Slice", "Concat", "Sub"} <= added | {n.b for n in differing[0].changed}
    else:
        assert {c.likeness for c in differing} == {"weights"}
        assert all(name in t.name for c in differing for t in c.tensors if fault != "swapped decoder layers")
        assert any(name in t.name for c in differing for t in c.tensors)
    if fault == "wrong image mean":
        (mean,) = differing[0].tensors
        assert mean.a == mean.b == "float [1, 3, 1, 1]"
        assert mean.relative_error


def test_what_is_no_package_is_refused(tiny_w4a16: Path, tmp_path: Path, copy: Path) -> None:
    with pytest.raises(UserError, match=r"package\.missing"):
        difference(tiny_w4a16, tmp_path)
    (copy / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UserError, match=r"package\.graph"):
        difference(tiny_w4a16, copy)


def test_the_command_has_a_summary_details_and_an_exit_code(
    tiny_w4a16: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        code = 0
        try:
            cli.main(["diff", str(tiny_w4a16), str(copy), *arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, capsys.readouterr().out

    assert run("--exit-code") == (0, f"{tiny_w4a16.name} and copy are identical to the last byte\n")
    scaled(copy, "model.language_model.layers.1.mlp.up_proj.weight.scales", 2.0)
    assert run("--exit-code")[0] == 4
    code, text = run("--component", "model")
    assert code == 0
    assert "up_proj" in text
    data = json.loads(run("--json")[1])
    assert (data["identical"], data["schema_version"]) == (False, 1)
    assert Difference.model_validate({k: v for k, v in data.items() if k not in ("summary", "identical", "equivalent")})
    assert cli_error("diff", str(tiny_w4a16), str(copy), "--component", "modle") == 2


def cli_error(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(arguments))
    return int(stop.value.code or 0)


def test_distances_are_those_of_numpy() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 300, 7)).astype(np.float32)
    found = distance(a, b)
    assert found.relative == pytest.approx(np.linalg.norm(b.astype(float) - a) / np.linalg.norm(a.astype(float)))
    assert found.largest == pytest.approx(np.abs(b.astype(float) - a).max())
    assert not found.exact
    same = distance(a, a)
    assert (same.relative, same.largest, same.exact) == (0.0, 0.0, True)
    zero = np.zeros(3, np.float32)
    assert distance(zero, zero).relative == 0
    assert distance(zero, zero + 1).relative is None
    bad = np.array([1, np.nan], np.float32)
    assert (distance(bad, bad).exact, distance(bad, bad).finite) == (True, False)
    with pytest.raises(ValueError, match="no distance"):
        distance(a, b[:2])
