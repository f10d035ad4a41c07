"""The network in torch and its graph give the same, with and without the question."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from safetensors.torch import save_file

from hvlc.export.mobilenet import QuestionShape, resolution_compressor
from hvlc.graphs.builder import GraphBuilder
from hvlc.models.hypervl.configuration import HyperVLResolutionConfig
from hvlc.training.vrc.network import CHANNELS, WINDOW, ResolutionNetwork, start
from hvlc.weights.checkpoint import Checkpoint

CONFIG = HyperVLResolutionConfig(proxy_size=64, depth_multiplier=0.25)


def stored(network: ResolutionNetwork, place: Path) -> Checkpoint:
    save_file({f"part.{k}": v.contiguous() for k, v in network.state_dict().items()}, place / "model.safetensors")
    (place / "config.json").write_text('{"model_type": "any"}')
    return Checkpoint.open(place)


@pytest.mark.parametrize("ids", [[], [3], [5, 1, 7, 7]])
@pytest.mark.parametrize("reads", [False, True])
def test_the_graph_computes_the_network(tmp_path: Path, ids: list[int], reads: bool) -> None:
    torch.manual_seed(1)
    network = ResolutionNetwork(CONFIG, 11 if reads else None, 4).eval()
    start(network, torch.randn(11, 8) if reads else None)
    if network.question is not None:
        torch.nn.init.normal_(network.question.film.weight)
        torch.nn.init.normal_(network.question.film.bias)
    torch.nn.init.normal_(network.spread.weight)
    b = GraphBuilder("resolution", stored(network, tmp_path))
    model = resolution_compressor(
        b, "part", 64, CONFIG.layer_norm_eps, QuestionShape(11, 4, CHANNELS, WINDOW) if reads else None, graded=True
    )
    proxy = torch.randn(1, 3, 64, 64)
    feeds = {"proxy_values": proxy.numpy(), **({"question_ids": np.array(ids, np.int64)} if reads else {})}
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    found = np.stack(session.run(None, feeds), -1)
    padded = torch.tensor([[*ids, *[-1] * (6 - len(ids))]])
    with torch.no_grad():
        expected = network(proxy, padded if reads else None)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4, rtol=1e-3)


def test_the_question_begins_without_effect_and_then_has_one() -> None:
    network = ResolutionNetwork(CONFIG, 11, 4).eval()
    proxy, ids = torch.randn(1, 3, 64, 64), torch.tensor([[2, 3, -1]])
    assert torch.equal(network(proxy, ids), network(proxy, torch.tensor([[9, -1, -1]])))
    torch.nn.init.normal_(network.question.film.weight)
    assert not torch.equal(network(proxy, ids), network(proxy, torch.tensor([[9, -1, -1]])))
    assert torch.allclose(network(proxy, ids), network(proxy, torch.tensor([[2, 3, -1, -1, -1]])))


def test_the_table_keeps_what_is_near_near() -> None:
    """A projection on the directions of most variance; more of them than the table has are zeros."""
    torch.manual_seed(0)
    table = torch.randn(40, 3)
    table[1] = table[0] + 0.01
    network = ResolutionNetwork(CONFIG, 40, 8)
    start(network, table)
    own = network.question.table.weight
    assert (own[0] - own[1]).norm() < 0.1 * (own[0] - own[2:]).norm(dim=-1).min()
    assert own[:, 3:].abs().max() == 0
