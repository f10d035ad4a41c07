"""Files of a directory lie in it or in the hub's cache that it is a snapshot of; nothing else is followed."""

from pathlib import Path

import pytest

from hvlc.files.links import leads_outside


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A repository in the layout of the hub's cache; `snapshots/abc` is the snapshot."""
    repository = tmp_path / "hub" / "models--team--model"
    for name in ("blobs", "snapshots/abc/onnx", "snapshots/abd", "refs"):
        (repository / name).mkdir(parents=True)
    (repository / "blobs" / "5ac1e").write_bytes(b"weights")
    (repository / "refs" / "main").write_bytes(b"abc")
    (tmp_path / "secret").write_bytes(b"key")
    return repository


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("model.onnx", "../../blobs/5ac1e"),
        ("onnx/model.onnx", "../../../blobs/5ac1e"),
        ("alias.onnx", "model.onnx"),
        ("missing.onnx", "../../blobs/not-there-yet"),
    ],
)
def test_links_of_a_snapshot_lead_to_its_blobs(cache: Path, name: str, target: str) -> None:
    snapshot = cache / "snapshots" / "abc"
    (snapshot / name).symlink_to(target)
    assert not leads_outside(snapshot / name, snapshot)
    assert not leads_outside(snapshot / name, (snapshot / name).parent)


def test_a_snapshot_may_be_reached_through_links(cache: Path, tmp_path: Path) -> None:
    (cache / "snapshots" / "abc" / "model.onnx").symlink_to("../../blobs/5ac1e")
    (tmp_path / "mine").symlink_to(cache / "snapshots" / "abc")
    assert not leads_outside(tmp_path / "mine" / "model.onnx", tmp_path / "mine")


@pytest.mark.parametrize(
    "target",
    [
        "../../../../secret",
        "/etc/hostname",
        "../../refs/main",
        "../abd/model.onnx",
        "../../blobs/../refs/main",
        "../../blobs/deeper/5ac1e",
        "../../blobs",
    ],
)
def test_every_other_link_leads_outside(cache: Path, target: str) -> None:
    snapshot = cache / "snapshots" / "abc"
    (snapshot / "model.onnx").symlink_to(target)
    assert leads_outside(snapshot / "model.onnx", snapshot)


def test_a_link_of_a_link_counts_where_it_ends(cache: Path) -> None:
    snapshot = cache / "snapshots" / "abc"
    (cache / "blobs" / "bad").symlink_to("../../../secret")
    (snapshot / "model.onnx").symlink_to("../../blobs/bad")
    assert leads_outside(snapshot / "model.onnx", snapshot)


def test_blobs_beside_another_directory_are_outside(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    package = tmp_path / "packages" / "mine"
    package.mkdir(parents=True)
    (package / "model.onnx").symlink_to("../../blobs/5ac1e")
    assert leads_outside(package / "model.onnx", package)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "nul\0", ".."])
def test_names_that_leave_the_directory_are_outside(tmp_path: Path, name: str) -> None:
    package = tmp_path / "package"
    package.mkdir()
    assert leads_outside(package / name, package)


@pytest.mark.parametrize("name", ["model.onnx", "weights/model.data", "x" * 5000, "loop"])
def test_names_that_stay_are_inside_whether_they_exist_or_not(tmp_path: Path, name: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert not leads_outside(tmp_path / name, tmp_path)
