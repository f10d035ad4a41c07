"""The shipped checkpoint has learned to read, and quantization keeps what it learned."""

from pathlib import Path

import onnx
import pytest

from hvlc.evaluation.documents import DocumentsTask
from hvlc.manifest.manifest import Manifest
from hvlc.workflows.evaluate.evaluate import Setting, evaluate_directory

BITS_LIMIT = 4.6


def _exact_match(package: Path, encoder: str, vrc: bool, count: int) -> tuple[float, float]:
    """Exact match and mean visual tokens."""
    found = evaluate_directory(package, DocumentsTask(count), [Setting(encoder, vrc)])[0].summary
    return found.exact_match.value, found.visual_tokens.value


def _accuracy_bars(packages: dict[str, Path], count: int, slack: float) -> None:
    """The bars of the reference checkpoint, loosened by `slack` for small samples."""
    full = {e: _exact_match(packages["float32"], e, False, count) for e in ("base", "large")}
    assert full["large"][0] >= 0.90 - slack
    assert full["base"][0] >= 0.80 - slack
    compressed, tokens = _exact_match(packages["float32"], "large", True, count)
    assert tokens <= 0.80 * full["large"][1]
    assert compressed >= (0.987 - slack) * full["large"][0]
    for encoder in ("base", "large"):
        float32 = _exact_match(packages["float32"], encoder, True, count)[0]
        quantized = _exact_match(packages["w4a16"], encoder, True, count)[0]
        assert quantized >= (0.995 - slack) * float32


def test_reads_documents_and_keeps_it_under_w4a16_on_a_sample(packages: dict[str, Path]) -> None:
    _accuracy_bars(packages, 48, slack=0.05)


@pytest.mark.slow
def test_reads_documents_and_keeps_it_under_w4a16(packages: dict[str, Path]) -> None:
    _accuracy_bars(packages, 512, slack=0.0)


def test_decoder_weights_are_four_bits_on_disk(packages: dict[str, Path]) -> None:
    bits = Manifest.load(packages["w4a16"]).bits_per_decoder_weight
    assert bits is not None
    assert bits <= BITS_LIMIT
    graph = onnx.load(packages["w4a16"] / "model.onnx", load_external_data=False).graph
    products = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert not [node for node in graph.node if node.op_type == "MatMul"]
    weights = sum(_attribute(node, "K") * _attribute(node, "N") for node in products)
    stored = sum(_stored_bytes(i) for i in graph.initializer if i.name.endswith((".int4", ".scales")))
    assert 8 * stored / weights == pytest.approx(bits)


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next(a.i for a in node.attribute if a.name == name)


def _stored_bytes(tensor: onnx.TensorProto) -> int:
    places = {entry.key: entry.value for entry in tensor.external_data}
    return int(places["length"]) if places else len(tensor.raw_data)
