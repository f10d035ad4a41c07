"""A plan states the memory of encoders that the package then states, and the batch of tiles that a build asks for."""

from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.manifest.manifest import Manifest
from hvlc.package.activations import encoder_caps
from hvlc.workflows.build.build import build, plan_build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text


@pytest.mark.parametrize(("batch", "expected"), [(None, 4), (3, 3)])
def test_a_plan_states_what_its_package_states(
    tiny_checkpoint: Path, tmp_path: Path, batch: int | None, expected: int
) -> None:
    request = open_request(tiny_checkpoint, "cpu", "w4a16-rtn", tmp_path / "package", threads=1, tile_batch=batch)
    planned = plan_build(request).estimate.activation_bytes
    package = build(request).output
    manifest = Manifest.load(package)
    assert manifest.images is not None
    assert manifest.images.tile_batch == expected
    assert planned == {f"vision_{name}": cap for name, cap in encoder_caps(package, manifest).items()}
    if batch:
        assert rebuild(package, tiny_checkpoint, threads=1)


def test_a_batch_is_refused_where_there_are_no_tiles(tmp_path: Path) -> None:
    checkpoint = save_text(tmp_path / "checkpoint", "llama")
    request = open_request(checkpoint, "cpu", "float32", tmp_path / "package", tile_batch=2)
    with pytest.raises(UserError, match=r"build\.tile_batch.*the model sees no images"):
        plan_build(request)
