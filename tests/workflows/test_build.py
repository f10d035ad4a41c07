"""The build's journal and what makes a package current."""

import json
from pathlib import Path

import pytest

from hvlc.errors import TargetError, UserError
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.targets import target_path
from hvlc.workflows.build import request as requesting
from hvlc.workflows.build.build import build, is_current, plan_build
from hvlc.workflows.build.rebuild import rebuild
from hvlc.workflows.build.request import BuildRequest, open_request
from hvlc.workflows.build.steps import STEPS


@pytest.fixture
def request_for(tiny_checkpoint: Path, tmp_path: Path) -> BuildRequest:
    return open_request(tiny_checkpoint, "cpu", "w4a16-rtn", tmp_path / "package")


def test_every_stage_is_announced_in_order_and_has_a_line_in_the_journal(request_for: BuildRequest) -> None:
    announced: list[tuple[str, int, int]] = []
    result = build(request_for, lambda what, done, total: announced.append((what, done, total)))
    steps = [s for s in STEPS if s not in ("calibrate", "compile")]  # which only builds that need them announce
    assert announced[: len(steps)] == [(step, STEPS.index(step), len(STEPS)) for step in steps]
    written = announced[len(steps) :]
    assert {what for what, _, _ in written} == {"package (MB)"}
    assert [done for _, done, _ in written] == sorted(done for _, done, _ in written)
    assert written[-1][1] <= written[-1][2]
    assert [entry.step for entry in result.journal if entry.step in STEPS] == steps
    assert set(result.seconds) == set(steps)
    steps = [entry.step for entry in result.journal]
    assert steps.index("AddFront") < steps.index("passes") < steps.index("QuantizeWeights") < steps.index("quantize")


def test_a_package_is_current_until_an_input_or_the_code_changes(
    request_for: BuildRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_current(request_for)
    build(request_for)
    assert is_current(request_for)
    other = open_request(request_for.checkpoint, "cpu", "genai-default", request_for.output)
    assert not is_current(other)
    with monkeypatch.context() as patched:
        patched.setattr(requesting, "code_digest", lambda: "changed")
        assert not is_current(request_for)
    with (request_for.output / "model.onnx").open("ab") as file:
        file.write(b"x")
    assert not is_current(request_for)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (('execution_provider = "cpu"', 'execution_provider = "qnn"'), "'qnn' cannot be written yet"),
        (("schema_version = 1", "schema_version = 1\nfixed_shapes = true"), "has dimensions batch, sequence"),
        (('    "GroupQueryAttention",\n', ""), r"GroupQueryAttention \(2 nodes\)"),
        (("schema_version = 1", 'schema_version = 1\nrefused_ops = ["Resize"]'), r"does not take Resize \(2 nodes\)"),
    ],
)
def test_what_a_target_cannot_take_is_refused_before_anything_is_written(
    tiny_checkpoint: Path, tmp_path: Path, change: tuple[str, str], word: str
) -> None:
    text = target_path("cpu").read_text("utf-8")
    assert change[0] in text
    (tmp_path / "mine.toml").write_text(text.replace(*change, 1), "utf-8")
    request = open_request(tiny_checkpoint, str(tmp_path / "mine.toml"), "w4a16-rtn", tmp_path / "package")
    with pytest.raises(TargetError, match=word) as error:
        build(request)
    assert (error.value.code, error.value.exit_code) == ("target.refused", 3)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.toml"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda m: m["components"].pop("front"), "no component front"),
        (lambda m: m["components"]["front"].update(file="../front.onnx"), "file"),
        (lambda m: m["components"]["front"].update(file="other.onnx"), "no file other.onnx"),
        (lambda m: m["encoders"].update(huge="huge.onnx"), "no file huge.onnx"),
        (lambda m: m["policy"].update(default="huge"), "unknown encoders huge"),
    ],
)
def test_a_manifest_that_does_not_hang_together_is_refused(tiny_w4a16: Path, tmp_path: Path, change, word: str) -> None:
    from hvlc.errors import UserError

    content = json.loads((tiny_w4a16 / MANIFEST).read_text("utf-8"))
    change(content)
    (tmp_path / MANIFEST).write_text(json.dumps(content), "utf-8")
    with pytest.raises(UserError, match=word):
        Manifest.load(tmp_path)


def test_a_package_has_the_policy_of_the_file_or_of_the_recipe_and_rebuilds_with_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("default: large\nrules:\n- {encoder: base, below_scale: 0.5}\n", "utf-8")
    recipe = "extends: w4a16-rtn\nname: ruled\ndescription: d\npolicy: {default: large}\n"
    (tmp_path / "ruled.yaml").write_text(recipe, "utf-8")
    ruled = open_request(tiny_checkpoint, "cpu", str(tmp_path / "ruled.yaml"), tmp_path / "ruled", threads=1)
    made = build(ruled).manifest.policy
    assert made is not None
    assert (made.default, made.rules) == ("large", ())
    over = open_request(
        tiny_checkpoint,
        "cpu",
        str(tmp_path / "ruled.yaml"),
        tmp_path / "over",
        policy=tmp_path / "mine.yaml",
        threads=1,
    )
    made = build(over).manifest.policy
    assert made is not None
    assert made.model_dump(mode="json") == {"default": "large", "rules": [{"encoder": "base", "below_scale": 0.5}]}
    assert rebuild(tmp_path / "over", tiny_checkpoint).files > 0


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        ("default: huge", "build.policy", "huge"),
        ("default: base\nrule: []", "spec.invalid", "rules"),
        ("default: [", "spec.unreadable", "mine.yaml"),
    ],
)
def test_a_wrong_policy_is_refused_before_the_work(
    tiny_checkpoint: Path, tmp_path: Path, text: str, code: str, words: str
) -> None:
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    with pytest.raises(UserError, match=words) as error:
        plan_build(open_request(tiny_checkpoint, "cpu", "w4a16-rtn", tmp_path / "p", policy=tmp_path / "mine.yaml"))
    assert error.value.code == code
