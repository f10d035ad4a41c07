"""Facts say what a model is for, and a question for what it has not is a bug with a code."""

from dataclasses import FrozenInstanceError, replace

import pytest

from hvlc.errors import HvlcError
from hvlc.graphs.bundle import Bundle
from hvlc.graphs.facts import Facts, Kind
from tests.helpers.facts import facts_of, image_facts, text_facts, tower_facts


@pytest.mark.parametrize("kind", Kind)
def test_the_kind_follows_from_what_there_is(kind: Kind) -> None:
    assert facts_of(kind).kind is kind


def test_a_model_that_sees_speaks() -> None:
    facts = Facts(text=text_facts(), image=image_facts())
    assert facts.sees.image_token_id in facts.sees.special_ids
    assert facts.speaks.vocab_size > max(facts.sees.special_ids)


def test_what_is_not_there_is_a_bug_of_the_caller() -> None:
    for ask in (lambda: facts_of(Kind.VISION).speaks, lambda: Facts().speaks, lambda: Facts().hidden_size):
        with pytest.raises(HvlcError, match="has no language model") as error:
            ask()
        assert (error.value.code, error.value.exit_code) == ("bundle.facts", 1)
    for kind in (Kind.VISION, Kind.LANGUAGE):
        with pytest.raises(HvlcError, match="sees no images") as error:
            facts_of(kind).sees  # noqa: B018
        assert (error.value.code, error.value.exit_code) == ("bundle.facts", 1)


def test_the_width_is_the_language_models_or_the_towers() -> None:
    assert Facts(text=text_facts(hidden_size=7)).hidden_size == 7
    assert Facts(text=text_facts(hidden_size=7), image=image_facts()).hidden_size == 7
    assert Facts(tower=tower_facts(hidden_size=9)).hidden_size == 9


@pytest.mark.parametrize(("written", "ends"), [(5, [5]), ([5, 6], [5, 6]), (0, [0])])
def test_ends_of_an_answer_are_a_list_however_they_are_written(written: int | list[int], ends: list[int]) -> None:
    text = text_facts(eos_token_id=written)
    assert text.end_tokens == ends
    assert text.eos_token_id == written  # genai_config.json has the checkpoint's form


def test_facts_are_replaced_and_never_changed() -> None:
    facts = facts_of(Kind.LANGUAGE)
    with pytest.raises(FrozenInstanceError):
        facts.speaks.context_length = 1  # type: ignore[misc]
    shorter = replace(facts, text=replace(facts.speaks, context_length=1))
    assert (shorter.speaks.context_length, facts.speaks.context_length) == (1, text_facts().context_length)


def test_a_bundle_begins_with_none() -> None:
    assert Bundle("test").facts == Facts()
