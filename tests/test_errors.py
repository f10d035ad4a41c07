"""Errors tell everything at once, and our own bugs are never taken for a user's problem."""

import pytest

from hvlc.errors import Collector, HvlcError, TargetError, UserError, raise_all

MISSING = UserError("checkpoint.weights", "a is missing", "save it again")
SHAPE = UserError("checkpoint.weights", "b is [2], the config asks for [3]", "match them")
REFUSED = TargetError("target.refused", "no such operator", "choose another target")


def test_no_problem_is_no_error() -> None:
    raise_all([])
    Collector().raise_all()


def test_one_problem_is_raised_as_it_is() -> None:
    with pytest.raises(TargetError) as error:
        raise_all([REFUSED])
    assert error.value is REFUSED


@pytest.mark.parametrize(
    ("problems", "code", "exit_code"),
    [
        ([MISSING, SHAPE], "checkpoint.weights", 2),
        ([MISSING, REFUSED], "several", 2),
        ([REFUSED, TargetError("plan.target", "x", "y")], "several", 3),
    ],
)
def test_several_come_together(problems: list[HvlcError], code: str, exit_code: int) -> None:
    with pytest.raises(HvlcError) as error:
        raise_all(problems)
    assert (error.value.code, error.value.exit_code) == (code, exit_code)
    assert error.value.problems == tuple(problems)
    for problem in problems:
        assert problem.cause in error.value.cause
        assert f"({problem.fix})" in error.value.cause


def test_of_very_many_the_text_shows_some_and_counts_the_rest() -> None:
    many = [UserError("checkpoint.weights", f"w{i} is missing", "save it again") for i in range(40)]
    with pytest.raises(UserError) as error:
        raise_all(many)
    assert len(error.value.problems) == 40
    assert "40 problems" in error.value.cause
    assert "and 28 more" in error.value.cause
    assert error.value.fix == "save it again"


def test_a_collector_goes_on_after_a_problem_and_opens_up_several() -> None:
    found = Collector()
    with found:
        raise MISSING
    with found:
        raise_all([SHAPE, REFUSED])
    assert found.problems == [MISSING, SHAPE, REFUSED]


@pytest.mark.parametrize("error", [HvlcError("bundle.wire", "ours", "report it"), ValueError("x"), KeyboardInterrupt()])
def test_a_collector_lets_bugs_and_interrupts_pass(error: BaseException) -> None:
    found = Collector()
    with pytest.raises(type(error)), found:
        raise error
    assert found.problems == []


def test_a_collector_requires_what_its_blocks_should_have_made() -> None:
    found, made = Collector(), None
    with found:
        made = 3
    assert found.require(made) == 3
    with found:
        raise UserError("first", "no checkpoint", "name one")
    assert found.require(made) == 3  # it is there, whatever else is wrong
    missing: int | None = None
    with pytest.raises(UserError, match="no checkpoint"):
        found.require(missing)


def test_a_value_that_is_missing_without_a_problem_is_a_bug() -> None:
    with pytest.raises(HvlcError, match=r"^\[bug\.missing\] internal error") as caught:
        Collector().require(None)
    assert caught.value.exit_code == 1


def test_what_is_falsy_is_there() -> None:
    assert Collector().require(0) == 0
    assert Collector().require("") == ""
