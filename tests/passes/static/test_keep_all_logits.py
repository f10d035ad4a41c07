"""A decoder with all positions says at each what it says when the sequence ends there."""

from pathlib import Path

import numpy as np
import pytest

from hvlc.export import export_bundle
from hvlc.graphs.bundle import Bundle, Role
from hvlc.passes.fuse.fuse_skip_norm import FuseSkipNorm
from hvlc.passes.static.keep_all_logits import KeepAllLogits
from hvlc.targets import load_target
from hvlc.weights.checkpoint import Checkpoint
from hvlc.workflows.calibrate.inputs import decoder_feeds
from tests.export.tiny_families import TEXT, save_text
from tests.helpers.sessions import run
from tests.helpers.tolerances import GRAPH_FLOAT32


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", TEXT)
def test_every_position_says_what_the_last_one_does(family: str, fused: bool, tmp_path: Path, checked: None) -> None:
    checkpoint = Checkpoint.open(save_text(tmp_path / "checkpoint", family))
    last, whole = export_bundle(checkpoint), export_bundle(checkpoint)
    for bundle in (last, whole):
        if fused:
            FuseSkipNorm(lambda role: load_target("cpu").takes_op).run(bundle)
    KeepAllLogits().run(whole)
    assert [e.changed for e in whole.journal if e.step == "KeepAllLogits"][-1] >= 1
    ids = np.random.default_rng(0).integers(0, 200, (2, 6))
    said = logits(whole, ids)
    assert said.shape[:2] == (2, 6)
    for length in (1, 4, 6):
        expected = logits(last, ids[:, :length])
        assert expected.shape[1] == 1
        np.testing.assert_allclose(said[:, length - 1], expected[:, 0], atol=GRAPH_FLOAT32)


def logits(bundle: Bundle, ids: np.ndarray) -> np.ndarray:
    (decoder,) = bundle.with_role(Role.DECODER)
    names = [v.name for v in decoder.graph.outputs]
    return run(decoder.model, decoder_feeds(decoder, "input_ids", ids))[names.index("logits")]


def test_what_has_no_decoder_stays(tiny_checkpoint: Path) -> None:
    bundle = export_bundle(Checkpoint.open(tiny_checkpoint))
    before = {name: len(c.graph) for name, c in bundle.components.items()}
    KeepAllLogits().run(bundle)
    after = {name: len(c.graph) for name, c in bundle.components.items()}
    assert {name for name in before if before[name] != after[name]} == {"model"}
