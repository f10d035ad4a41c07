"""Where components run, why, and what is known of what was compiled."""

from pathlib import Path

import pytest

from hvlc.manifest.manifest import Manifest
from hvlc.report.placement import ComponentPlacement, placed_components, placement_table
from hvlc.results.compilation import COMPILATION, Compilation, NotChecked
from hvlc.workflows.build.build import build
from hvlc.workflows.build.request import open_request
from tests.export.tiny_families import save_text
from tests.helpers.commands import Hvlc
from tests.helpers.fixed_shapes import write_target
from tests.helpers.packages import renewed
from tests.report.test_compilation import compilation
from tests.report.test_tables import shown
from tests.runtime.test_fixed import as_if_compiled


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("placement")
    target = write_target(root / "npu.toml")
    request = open_request(save_text(root / "checkpoint", "llama"), target, "float32", root / "package", threads=1)
    return build(request).output


def by_name(package: Path, found: Compilation | None) -> dict[str, ComponentPlacement]:
    return {one.component: one for one in placed_components(Manifest.load(package), found)}


def test_every_component_says_where_when_and_why(static: Path) -> None:
    placed = by_name(static, None)
    assert (placed["embedding"].runs_on, placed["head_token"].runs_on) == ("cpu", "npu")
    assert "depend on the image" in placed["embedding"].why
    assert placed["head_token"].why == "its operators hold to the rules of npu"
    assert [placed[f"head_{phase}"].when for phase in ("prompt", "token")] == ["prompt", "each token"]
    assert {(one.compiled_for, one.checked) for one in placed.values()} == {(None, None)}


def test_what_was_compiled_says_for_what_and_how_far_it_was_checked(static: Path, tmp_path: Path) -> None:
    package = as_if_compiled(static, tmp_path / "package")
    record = compilation()
    (check,) = record.checks
    late = NotChecked(what="head_prompt", reason="it takes too long")
    record = record.model_copy(
        update={"checks": (check.model_copy(update={"component": "head_token"}),), "not_checked": (late,)}
    )
    placed = by_name(package, record)
    assert placed["head_token"].compiled_for == "SM8750, v79"
    assert placed["head_token"].checked == "emulated, 0.40% noise"  # the worst of its outputs
    assert placed["head_prompt"].checked == "not checked: it takes too long"
    assert placed["decoder_1_token"].checked == "not checked: no record says so"
    assert (placed["embedding"].compiled_for, placed["embedding"].checked) == (None, None)
    text = shown(placement_table(list(placed.values())), width=150)
    assert all(words in text for words in ("SM8750, v79", "emulated, 0.40% noise", "each token", "rules of npu"))


def test_inspect_shows_it(static: Path, tmp_path: Path, hvlc: Hvlc) -> None:
    package = as_if_compiled(static, tmp_path / "package")
    skipped = NotChecked(what="every compiled graph", reason="emulation was not asked for")
    record = compilation().model_copy(update={"checks": (), "not_checked": (skipped,)})
    (package / COMPILATION).write_text(record.model_dump_json(), "utf-8")
    renewed(package, COMPILATION)
    found = {one["component"]: one for one in hvlc("inspect", package, "--json").json["placement"]}
    assert found["head_token"]["checked"] == "not checked: emulation was not asked for"
    assert found["embedding"]["compiled_for"] is None
    assert "compiled for" in hvlc("inspect", package).out
