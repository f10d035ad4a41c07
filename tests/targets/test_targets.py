"""Targets: files that extend each other, limits with their sources, and the answers to questions."""

from pathlib import Path

import pytest

from hvlc.errors import UserError
from hvlc.targets import (
    Compiler,
    Condition,
    Evidence,
    Grain,
    Operand,
    OperandIs,
    Operation,
    Quantized,
    Severity,
    Target,
    Tried,
    load_target,
    shipped_targets,
)

SNAPDRAGONS = {"qnn-sm8550": (43, 73), "qnn-sm8650": (57, 75), "qnn-sm8750": (69, 79), "qnn-sm8850": (87, 81)}
HEAD = 'schema_version = 1\nname = "mine"\ndescription = "a phone"\n'
OWN = HEAD + 'execution_provider = "cpu"\nevidence = "run"\n'
#: Fields that are not limits.
PLAIN = set("schema_version extends name description execution_provider tried evidence sources".split())
GROUPS = {"operators", "rules", "products", "block_formats"}  # each entry has a source of its own


def written(directory: Path, text: str) -> Target:
    (directory / "mine.toml").write_text(text, "utf-8")
    return load_target(str(directory / "mine.toml"))


def refusal(directory: Path, text: str) -> UserError:
    with pytest.raises(UserError) as error:
        written(directory, text)
    assert "mine.toml" in error.value.cause
    return error.value


# Files.


@pytest.mark.parametrize("name", shipped_targets())
def test_every_limit_of_a_shipped_target_has_a_source(name: str) -> None:
    target = load_target(name)
    unsourced = target.model_fields_set - PLAIN - GROUPS - set(target.sources)
    assert unsourced == set()
    known = [*target.sources.values(), *target.operators.values(), *target.rules.values(), *target.products.values()]
    assert all(len(one.source) > 8 for one in known)
    only_read = all(one.evidence is not Evidence.RUN for one in target.rules.values())
    assert only_read is (target.tried is Tried.RULES) or not target.rules


@pytest.mark.parametrize(("name", "numbers"), SNAPDRAGONS.items())
def test_the_snapdragons_differ_in_chip_and_architecture_alone(name: str, numbers: tuple[int, int]) -> None:
    target, first = load_target(name), load_target("qnn-sm8550")
    assert (target.soc_model, target.htp_arch) == numbers
    assert [target.provider_options[key] for key in ("soc_model", "htp_arch")] == [str(n) for n in numbers]
    own = {"name", "description", "soc_model", "htp_arch", "provider_options", "sources"}
    assert target.model_dump(exclude=own) == first.model_dump(exclude=own)


def test_the_snapdragons_alone_have_a_compiler_here() -> None:
    compiled = {name for name in shipped_targets() if load_target(name).compiler is Compiler.QNN}
    assert compiled == set(SNAPDRAGONS)
    assert all(load_target(name).compiler is Compiler.NONE for name in set(shipped_targets()) - compiled)


def test_a_file_extends_a_shipped_target_without_code(tmp_path: Path) -> None:
    mine = written(
        tmp_path,
        HEAD
        + 'extends = "qnn-sm8750"\nmax_rank = 4\n[provider_options]\nvtcm_mb = "8"\n'
        + '[rules.no-gelu]\noperators = ["Gelu"]\nreason = "ours is broken"\nevidence = "run"\nsource = "our lab"\n'
        + '[rules.erf-alone]\nseverity = "hazard"\n',
    )
    base = load_target("qnn-sm8750")
    assert (mine.name, mine.max_rank, mine.soc_model) == ("mine", 4, base.soc_model)
    assert mine.provider_options == {**base.provider_options, "vtcm_mb": "8"}
    assert set(mine.rules) == {*base.rules, "no-gelu"}
    assert mine.rules["erf-alone"].reason == base.rules["erf-alone"].reason
    assert [f.reason for f in mine.findings(Operation("Gelu"))] == ["ours is broken"]
    assert base.findings(Operation("Gelu")) == ()


def test_an_unknown_base_offers_the_nearest(tmp_path: Path) -> None:
    error = refusal(tmp_path, HEAD + 'extends = "qnn-sm8751"\n')
    assert (error.code, error.fix) == ("target.extends", "did you mean 'qnn-sm8750'?")


def test_a_users_file_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(OWN)
    assert refusal(tmp_path, HEAD + f'extends = "{tmp_path / "other.toml"}"\n').code == "target.extends"


def test_a_circle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text(OWN + 'extends = "b"\n')
    (tmp_path / "b.toml").write_text(OWN + 'extends = "a"\n')
    monkeypatch.setattr("hvlc.targets.loading._directory", lambda: tmp_path)
    with pytest.raises(UserError, match="extends itself") as error:
        load_target("a")
    assert error.value.code == "target.extends"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('colour = "red"', "colour: unknown key"),
        ('tried = "perhaps"', "tried: Input should be"),
        ('compiler = "qairt"', "compiler: Input should be 'none' or 'qnn'"),
        ("max_rank = 0", "max_rank"),
        ('[operators.a]\nnames = ["Relu"]\nevidence = "run"', "operators.a.source: Field required"),
        ('[operators.a]\nnames = ["Relu"]\ntaken = false\nevidence = "run"\nsource = "x"', "need a reason"),
        ('[rules.a]\noperators = ["Relu"]\nreason = "x"\nevidence = "heard"\nsource = "x"', "rules.a.evidence"),
        ('[rules.a]\noperators = []\nreason = "x"\nevidence = "run"\nsource = "x"', "rules.a.operators"),
        (
            '[rules.a]\noperators = ["Relu"]\nreason = "x"\nevidence = "run"\nsource = "x"\nwhen = { input = [] }',
            "rules.a.when.input: unknown key",
        ),
        ('[sources.max_ranks]\nevidence = "run"\nsource = "x"', "no limit 'max_ranks', did you mean 'max_rank'?"),
    ],
)
def test_a_wrong_file_is_named_with_its_key(tmp_path: Path, text: str, complaint: str) -> None:
    error = refusal(tmp_path, OWN + text + "\n")
    assert error.code == "spec.invalid"
    assert complaint in error.cause


# Questions.


def test_an_operator_is_refused_with_its_group_or_because_it_is_in_none() -> None:
    target = load_target("qnn-sm8750")
    (fused,) = target.findings(Operation("SkipLayerNormalization", "com.microsoft"))
    assert (fused.rule, fused.evidence) == ("operators.fused-norms", Evidence.RUN)
    assert "--fix" in fused.fix
    assert fused.source
    (absent,) = target.findings(Operation("Trilu"))
    assert (absent.rule, absent.reason) == ("operators", "qnn-sm8750 does not take Trilu")
    (foreign,) = target.findings(Operation("Relu", "com.example"))
    assert foreign.reason == "qnn-sm8750 does not take com.example.Relu"
    assert target.findings(Operation("Relu")) == ()


def test_shapes_are_held_against_rank_and_fixed_shapes() -> None:
    target = load_target("qnn-sm8750")

    def found(*shape: int | None) -> list[str]:
        return [f.rule for f in target.findings(Operation("Relu", inputs=(Operand("float32", shape),)))]

    assert found(1, 2, 3, 4, 5) == []
    assert found(1, 2, 3, 4, 5, 6) == ["max_rank"]
    assert found(1, None) == ["fixed_shapes"]
    assert [f.rule for f in target.findings(Operation("Relu", inputs=(Operand("float32", None),)))] == []


@pytest.mark.parametrize(
    ("activation", "weight", "grain", "taken"),
    [
        ("uint8", "int8", Grain.CHANNEL, True),
        ("uint8", "int16", Grain.TENSOR, False),
        ("uint16", "int4", Grain.CHANNEL, True),
        ("uint16", "int4", Grain.BLOCK, True),
        ("uint16", "uint4", Grain.TENSOR, True),
        ("uint16", "uint4", Grain.CHANNEL, False),
        ("int16", "uint8", Grain.TENSOR, False),
        ("float", "int8", Grain.CHANNEL, False),
    ],
)
def test_pairs_of_types_follow_the_measurements(activation: str, weight: str, grain: Grain, taken: bool) -> None:
    target = load_target("qnn-sm8750")
    verdict = target.takes_product("MatMul", activation, weight, grain)
    assert bool(verdict) is taken
    assert taken or f"{activation} activations with {weight} weights per {grain}" in verdict.reason
    first = None if activation == "float" else Quantized(activation)
    operands = (Operand(quantized=first), Operand(constant=True, quantized=Quantized(weight, grain)))
    assert (not target.findings(Operation("MatMul", inputs=operands))) is taken


@pytest.mark.parametrize(
    ("operator", "shape", "transposed", "taken"),
    [
        ("MatMul", (64, 48), 0, True),
        ("MatMul", (48, 64), 0, False),
        ("Gemm", (64, 48), 1, False),
        ("Gemm", (48, 64), 1, True),
        ("MatMul", None, 0, True),
    ],
)
def test_some_products_want_a_multiple_of_inputs(
    operator: str, shape: tuple[int, int] | None, transposed: int, taken: bool
) -> None:
    target = load_target("qnn-sm8750")
    weight = Operand(shape=shape, constant=True, quantized=Quantized("int4", Grain.LPBQ))
    operation = Operation(operator, "", {"transB": transposed}, (Operand(quantized=Quantized("uint16")), weight))
    refusals = [f.reason for f in target.findings(operation) if f.rule == "products"]
    assert (not refusals) is taken
    assert taken or refusals[0].endswith("weights per lpbq and 48 inputs: it takes multiples of 32")
    assert target.takes_product("MatMul", "uint16", "int4", Grain.BLOCK, 48)


def test_a_target_without_products_takes_any() -> None:
    assert load_target("webgpu").takes_product("MatMul", "uint3", "int1", Grain.TENSOR)


def test_parts_and_roles() -> None:
    target = load_target("qnn-sm8750")
    assert target.takes_part(2**31)
    assert "at most 2147483648 bytes" in target.takes_part(2**31 + 1).reason
    assert load_target("cpu").takes_part(10**12)
    assert target.leaves_to_cpu("embedding")
    assert "declares no CPU component of the role decoder" in target.leaves_to_cpu("decoder").reason


def test_refusals_come_before_hazards() -> None:
    target = load_target("qnn-sm8750")
    operands = (Operand(quantized=Quantized("uint16")), Operand(quantized=Quantized("uint16"), shape=(None, 4)))
    severities = [f.severity for f in target.findings(Operation("MatMul", inputs=operands))]
    assert severities == [Severity.REFUSAL, Severity.HAZARD]


# Conditions.


@pytest.mark.parametrize(
    ("condition", "operand", "holds"),
    [
        ({"dtypes": ("int64",)}, Operand("int64"), True),
        ({"dtypes": ("int64",)}, Operand("int32"), False),
        ({"dtypes": ("int64",)}, Operand(), False),
        ({"constant": True}, Operand(constant=True), True),
        ({"constant": False}, Operand(constant=True), False),
        ({"rank": 3}, Operand(shape=(1, None, 3)), True),
        ({"rank_above": 3}, Operand(shape=(1, 2, 3)), False),
        ({"rank_above": 3}, Operand(), False),
        ({"side_above": 9}, Operand(shape=(10, None)), True),
        ({"side_above": 9}, Operand(shape=(None, None)), False),
        ({"last_at_most": 32, "matrices_above": 8}, Operand(shape=(1, 64, 2, 32)), True),
        ({"last_at_most": 32, "matrices_above": 8}, Operand(shape=(1, 128, 32)), False),
        ({"last_at_most": 32}, Operand(), False),
        ({"largest_above": 65504.0}, Operand(largest=65505.0), True),
        ({"largest_above": 65504.0}, Operand(), False),
        ({"least_below": 0}, Operand(least=-1), True),
        ({"is_output": True}, Operand(), False),
        ({"quantized": ("uint8",)}, Operand(quantized=Quantized("uint8")), True),
        ({"quantized": ("uint8",)}, Operand(), False),
        ({"quantized": ()}, Operand(), True),
        ({"quantized": ()}, Operand(quantized=Quantized("uint8")), False),
        ({"grains": (Grain.LPBQ,)}, Operand(quantized=Quantized("int4", Grain.LPBQ)), True),
        ({"grains": (Grain.LPBQ,)}, Operand(), False),
        ({"zero_point": 0}, Operand(quantized=Quantized("uint8", zero_point=0)), True),
        ({"zero_point": 0}, Operand(quantized=Quantized("uint8")), False),
        ({"scale": 1 / 65536}, Operand(quantized=Quantized("uint16", scale=1.52587890625e-05)), True),
        ({"scale": 1 / 65536}, Operand(quantized=Quantized("uint16", scale=1.6e-05)), False),
        ({"scale": 1 / 65536}, Operand(quantized=Quantized("uint16")), False),
        ({"scale_below": 0.0}, Operand(quantized=Quantized("int8", least_scale=-0.1)), True),
        ({"scale_below": 0.0}, Operand(quantized=Quantized("int8", least_scale=0.1)), False),
        ({"scale_below": 0.0}, Operand(quantized=Quantized("int8")), False),
        ({"scale_below": 0.0}, Operand(), False),
        ({"gives_zero_point": False}, Operand(quantized=Quantized("int4", gives_zero_point=False)), True),
        ({"gives_zero_point": False}, Operand(quantized=Quantized("int4")), False),
        ({"gives_zero_point": False}, Operand(), False),
        ({"factor_above": 16}, Operand(quantized=Quantized("int4", largest_factor=17)), True),
        ({"factor_above": 16}, Operand(quantized=Quantized("int4", largest_factor=16)), False),
        ({"factor_above": 16}, Operand(quantized=Quantized("int4")), False),
        ({"factor_above": 16}, Operand(), False),
        ({"rows": 16}, Operand(shape=(1, 16, 64)), True),
        ({"rows": 16}, Operand(shape=(16, 1, 64)), True),
        ({"rows": 16}, Operand(shape=(1, 4, 4, 64)), False),
        ({"rows": 16}, Operand(shape=(1, None, 64)), False),
        ({"rows": 16}, Operand(shape=(16,)), False),
        ({"rows": 16}, Operand(), False),
    ],
)
def test_a_condition_on_an_operand(condition: dict, operand: Operand, holds: bool) -> None:
    assert OperandIs(at=0, **condition).holds((operand,)) is holds
    assert OperandIs(**condition).holds((None, operand)) is holds


@pytest.mark.parametrize(("drops", "rank", "taken"), [(True, 6, True), (False, 6, False), (True, 7, False)])
def test_a_dimension_of_1_is_not_counted_where_it_is_dropped(drops: bool, rank: int, taken: bool) -> None:
    target = load_target("qnn-sm8750").model_copy(update={"drops_unit_dims": drops})
    wide = Operand("float32", (1,) * rank, spare_unit=True)
    found = target.findings(Operation("Reshape", inputs=(Operand("float32", (1,)), None), outputs=(wide,)))
    assert (not found) is taken


def test_an_absent_operand_meets_no_condition_but_its_absence() -> None:
    assert OperandIs(at=2, given=False).holds((Operand(),))
    assert OperandIs(at=0, given=False).holds((None,))
    assert not OperandIs(at=2).holds((Operand(),))
    assert not OperandIs(at=2, given=True).holds((Operand(), Operand(), None))


@pytest.mark.parametrize(
    ("condition", "given", "holds"),
    [
        ({"attributes": {"mode": "wrap"}}, {"mode": "wrap"}, True),
        ({"attributes": {"mode": ("wrap", "edge")}}, {"mode": "edge"}, True),
        ({"attributes": {"mode": "wrap"}}, {}, False),
        ({"other_than": {"alpha": 1.0}}, {"alpha": 0.5}, True),
        ({"other_than": {"alpha": 1.0}}, {}, False),
        ({"other_than": {"dilations": 1}}, {"dilations": (1, 1)}, False),
        ({"other_than": {"dilations": 1}}, {"dilations": (1, 2)}, True),
        ({"no_multiple": {"K": "block_size"}}, {"K": 48, "block_size": 32}, True),
        ({"no_multiple": {"K": "block_size"}}, {"K": 64, "block_size": 32}, False),
        ({"no_multiple": {"K": "block_size"}}, {"K": 48}, False),
        ({"readers": ("Add",)}, {}, False),
    ],
)
def test_a_condition_on_attributes(condition: dict, given: dict, holds: bool) -> None:
    assert Condition(**condition).holds(Operation("Pad", attributes=given)) is holds


def test_a_condition_on_readers() -> None:
    assert Condition(readers=("Add", "Mul")).holds(Operation("Erf", readers=frozenset({"Mul"})))
