from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from hvlc.errors import TargetError
from hvlc.qnn.context import read_context

GOOD = "v2:6:2.51.0:5.51.0:79:69:0:0"
GRAPH = b"QNNExecutionProvider_QNNExecutionProvider_%d_1_0\0"


def wrapper(
    directory: Path,
    compatibility: str = GOOD,
    text: bytes = b"\0soc_type=SM8750;arch=79;num_nsps=1\0",
    binary: str = "a_qnn.bin",
    graphs: int = 1,
    more: tuple[str, ...] = (),
    **attributes: Any,
) -> Path:
    """A compiled graph as the compiler would write it, as far as it is read."""
    node = helper.make_node(
        "EPContext", ["x"], ["y"], domain="com.microsoft", **{"embed_mode": 0, "ep_cache_context": binary, **attributes}
    )
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    others = [helper.make_node(op_type, ["y"], [f"y{i}"]) for i, op_type in enumerate(more)]
    model = helper.make_model(helper.make_graph([node, *others], "a", values[:1], values[1:]))
    if compatibility:
        helper.set_model_props(model, {"ep_compatibility_info.QNNExecutionProvider": compatibility})
    onnx.save(model, directory / "a.onnx")
    (directory / "a_qnn.bin").write_bytes(text + b"".join(GRAPH % number for number in range(graphs)) * 2)
    return directory / "a.onnx"


def test_a_context_is_read(tmp_path: Path) -> None:
    context = read_context(wrapper(tmp_path))
    assert (context.soc_model, context.htp_arch, context.chip, context.sdk) == (69, 79, "SM8750", "2.51.0")
    assert context.graphs == 1
    assert context.binary == tmp_path / "a_qnn.bin"


def test_shared_weights_show(tmp_path: Path) -> None:
    assert read_context(wrapper(tmp_path, graphs=2)).graphs == 2


def test_another_chip_is_refused(tmp_path: Path) -> None:
    context = read_context(wrapper(tmp_path))
    context.require_device(69, 79)
    for chip in ((43, 73), (69, 75), (57, 79)):
        with pytest.raises(TargetError, match=r"compile.device.*SM8750"):
            context.require_device(*chip)


@pytest.mark.parametrize(
    "damage",
    [
        {"compatibility": ""},
        {"compatibility": "v3:6:2.51.0:5.51.0:79:69:0:0"},
        {"text": b""},
        {"text": b"soc_type=SM8550;arch=73;"},  # metadata and binary disagree
        {"text": b"soc_type=SM8750;arch=79;soc_type=SM8550;arch=73;"},
        {"binary": "../a_qnn.bin"},
        {"binary": "/etc/hostname"},
        {"binary": ".."},
        {"binary": ""},
        {"binary": "missing.bin"},
        {"embed_mode": 1},
    ],
)
def test_a_damaged_context_is_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    with pytest.raises(TargetError, match=r"compile\.context"):
        read_context(wrapper(tmp_path, **damage))


@pytest.mark.parametrize("more", [("QuantizeLinear",), ("Relu", "Relu")])
def test_what_was_left_outside_shows(tmp_path: Path, more: tuple[str, ...]) -> None:
    with pytest.raises(TargetError, match=rf"compile\.partial.*{more[0]}"):
        read_context(wrapper(tmp_path, more=more))
