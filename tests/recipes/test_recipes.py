"""Every shipped recipe and target, and every way to write a wrong one."""

from pathlib import Path

import pytest
import yaml

from hvlc.errors import UserError
from hvlc.graphs.plan import ActivationFormat, ActivationType, CacheType, RangeMethod
from hvlc.recipes.loading import load_recipe, recipe_path, shipped_recipes
from hvlc.recipes.schema import Recipe
from hvlc.targets import BlockFormat, Evidence, Target, load_target, shipped_targets, target_path, target_text

RULE = "rules: [{role: decoder, quantize: {bits: 4, block_size: 32}}]"
VALID = f"schema_version: 1\nname: mine\ndescription: one line\n{RULE}\n"

WRONG = {
    "unknown key": (VALID + "activation: float\n", "activation: unknown key, did you mean 'activations'?"),
    "unknown nested key": (VALID.replace("bits", "bit"), "rules.0.quantize.bit: unknown key, did you mean 'bits'?"),
    "unknown rule key": (VALID.replace("quantize", "quantise"), "did you mean 'quantize'?"),
    "duplicate key": (VALID + "name: again\n", "duplicate key name"),
    "duplicate nested key": (VALID.replace("bits: 4", "bits: 4, bits: 8"), "duplicate key bits"),
    "wrong type": (VALID.replace("block_size: 32", "block_size: [32]"), "rules.0.quantize.block_size: "),
    "wrong width": (VALID.replace("bits: 4", "bits: 5"), "rules.0.quantize.bits: "),
    "unknown role": (VALID.replace("decoder", "decoders"), "rules.0.role: "),
    "missing name": (VALID.replace("name: mine\n", ""), "name: Field required"),
    "unknown cache": (VALID + "kv_cache: int2\n", "kv_cache: "),
    "static settings of float activations": (VALID + "static: {dtype: int16}\n", "activations are float"),
    "unknown range": (VALID + "activations: static\nstatic: {range: mean}\n", "static.range: "),
    "LPBQ of 8 bits": (
        VALID.replace("bits: 4", "bits: 8, scale_type: lpbq"),
        "scale_type lpbq is for 4 bits in blocks",
    ),
    "LPBQ of whole rows": (
        VALID.replace("block_size: 32", "per_channel: true, scale_type: lpbq"),
        "scale_type lpbq is for 4 bits in blocks",
    ),
    "LPBQ with zero points": (
        VALID.replace("bits: 4", "bits: 4, symmetric: false, scale_type: lpbq"),
        "scale_type lpbq is for 4 bits in blocks",
    ),
    "a wrong fallback": (
        VALID.replace("bits: 4", "bits: 4, fallback: {bits: 8}"),
        "rules.0.quantize.fallback: ",
    ),
    "later version": (VALID.replace("schema_version: 1", "schema_version: 2"), "schema_version: "),
    "not a mapping": ("- 1\n- 2\n", "file: "),
    "empty": ("", "file: "),
    "broken": ("rules: [", "mine.yaml: "),
    "python object": ("!!python/object/apply:os.getcwd []", "mine.yaml: "),
    "unhashable key": ("? [1, 2]\n: 3\n", "mine.yaml: "),
    "not text": (b"\xc3\x28\x00", "mine.yaml is not UTF-8"),
}


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_shipped_recipe_says_its_name_and_survives_dumping(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    assert Recipe.parse(yaml.safe_load(yaml.safe_dump(recipe.model_dump(mode="json"))), "dumped") == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_rule_that_keeps_has_a_reason(name: str) -> None:
    assert all(rule.quantize or rule.reason for rule in load_recipe(name).rules)


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_recipe_is_refused_with_file_and_key(tmp_path: Path, case: str) -> None:
    content, complaint = WRONG[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        load_recipe(str(path))
    assert complaint in error.value.cause
    assert "mine.yaml" in error.value.cause
    assert error.value.code.startswith("spec.")


def test_several_problems_are_named_at_once(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(VALID.replace("bits", "bit").replace("block_size: 32", "block_size: 1"))
    with pytest.raises(UserError) as error:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert all(word in error.value.cause for word in ("bit: unknown", "bits: Field required", "block_size: "))


def test_a_users_own_recipe_loads(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(VALID)
    assert load_recipe(str(tmp_path / "mine.yaml")).rules[0].quantize.solver == "rtn"


@pytest.mark.parametrize(("find", "code"), [(recipe_path, "recipe.unknown"), (target_path, "target.unknown")])
def test_an_unknown_name_offers_the_nearest(find, code: str) -> None:
    name = {"recipe.unknown": "w4a61", "target.unknown": "cpuu"}[code]
    with pytest.raises(UserError) as error:
        find(name)
    assert error.value.code == code
    assert {"w4a61": "w4a16", "cpuu": "cpu"}[name] in error.value.fix


def test_the_recipe_of_the_document_asks_for_integer_zero_points(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text("utf-8")
    (tmp_path / "mine.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0], "utf-8")
    spec = load_recipe(str(tmp_path / "mine.yaml")).rules[0].quantize
    assert spec is not None
    assert str(spec.format(64, negative_scales=False)) == "int4 b32 asym f16"


@pytest.mark.parametrize(("load", "name"), [(load_recipe, "absent.yaml"), (load_target, "absent.toml")])
def test_an_absent_file_is_the_users_error(load, name: str) -> None:
    with pytest.raises(UserError, match="absent"):
        load(name)


@pytest.mark.parametrize("name", shipped_targets())
def test_a_shipped_target_is_consistent_and_sourced(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert Target.model_validate_json(target.model_dump_json()) == target
    for found in target.block_formats:
        assert found.source
        for block in found.block_sizes:
            assert block & (block - 1) == 0
            assert target.takes_weights(found.bits, block)
            assert bool(target.takes_weights(found.bits, block, ("zero_points",))) is found.zero_points
    if target.gather_bits and not target.leaves_to_cpu("embedding"):
        assert target.takes_op("GatherBlockQuantized", "com.microsoft")
    limits = [line for line in target_path(name).read_text("utf-8").splitlines() if line.startswith("#")]
    assert limits, "each limit carries a comment with its source"


def test_a_refusal_carries_its_reason() -> None:
    target = load_target("cpu")
    for verdict, words in (
        (target.takes_op("GroupNorm", "com.microsoft"), "cpu does not take com.microsoft.GroupNorm"),
        (target.takes_weights(3, 32), "cpu takes 4, 8 bits, not 3"),
        (target.takes_weights(4, 24), "blocks of 16, 32, 64, 128, 256, not 24"),
        (target.takes_gather(3), "not 3"),
    ):
        assert not verdict
        assert words in verdict.reason


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"contrib_ops": ()}, "block_formats need MatMulNBits"),
        ({"block_formats": "twice"}, "names a width twice"),
        ({"colour": "red"}, "colour: unknown key"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_an_inconsistent_target_is_refused(change: dict, complaint: str) -> None:
    data = load_target("cpu").model_dump(mode="json")
    found = BlockFormat(
        bits=4, block_sizes=(32,), zero_points=False, negative_scales=False, evidence=Evidence.RUN, source="x"
    )
    if change.get("block_formats") == "twice":
        change = {"block_formats": [found.model_dump(mode="json")] * 2}
    with pytest.raises(UserError, match=complaint):
        Target.parse(data | change, "mine.toml")


@pytest.mark.parametrize("text", ["name = ", 'name = "a"\nname = "b"\n', "[[["])
def test_broken_toml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(UserError, match=r"mine\.toml") as error:
        load_target(str(tmp_path / "mine.toml"))
    assert error.value.code == "spec.unreadable"


def test_static_activations_have_a_format_and_the_others_none(tmp_path: Path) -> None:
    texts = {
        "float": VALID,
        "plain": VALID + "activations: static\n",
        "chosen": VALID + "activations: static\nstatic: {dtype: int16, range: percentile}\nkv_cache: int8\n",
    }
    found = {}
    for name, text in texts.items():
        (tmp_path / "mine.yaml").write_text(text)
        found[name] = load_recipe(str(tmp_path / "mine.yaml"))
    assert found["float"].activation_format is None
    assert found["plain"].activation_format == ActivationFormat(ActivationType.UINT16, RangeMethod.MSE)
    assert found["chosen"].activation_format == ActivationFormat(ActivationType.INT16, RangeMethod.PERCENTILE)
    assert [found[name].kv_cache for name in ("plain", "chosen")] == [CacheType.FLOAT, CacheType.INT8]
    dumped = yaml.safe_load(yaml.safe_dump(found["chosen"].model_dump(mode="json")))
    assert Recipe.parse(dumped, "dumped") == found["chosen"]


def test_the_text_of_a_target_is_that_of_its_own_file(tmp_path: Path) -> None:
    assert target_text("qnn-sm8750") == target_path("qnn-sm8750").read_text("utf-8")
    own = tmp_path / "mine.toml"
    own.write_text('name = "mine"\nextends = "cpu"\n', "utf-8")
    assert target_text(str(own)) == own.read_text("utf-8")
    with pytest.raises(UserError) as caught:
        target_text("no-such-target")
    assert caught.value.code == "target.unknown"
