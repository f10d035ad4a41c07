"""Synonyms of activations are the same function in transformers, and no other name is."""

import pytest
import torch
from transformers.activations import ACT2CLS, ACT2FN

from hvlc.errors import UserError
from hvlc.export.activations import SYNONYMS, activation_name

VALUES = torch.linspace(-12, 12, 4801, dtype=torch.float64)


def same(one: str, other: str) -> bool:
    return bool(torch.allclose(ACT2FN[one](VALUES), ACT2FN[other](VALUES), rtol=1e-6, atol=1e-8))


@pytest.mark.parametrize("usual", SYNONYMS)
def test_exactly_the_synonyms_compute_the_same(usual: str) -> None:
    elementwise = sorted(set(ACT2CLS) - {"prelu", "xielu", "laplace"})  # those have parameters or their own shape
    assert [name for name in elementwise if same(name, usual)] == sorted(SYNONYMS[usual])


def test_a_synonym_becomes_the_usual_name() -> None:
    assert activation_name("swish", ("silu",), "hidden_act") == "silu"
    assert activation_name("gelu_new", ("gelu", "gelu_pytorch_tanh"), "hidden_act") == "gelu_pytorch_tanh"


@pytest.mark.parametrize("name", ["quick_gelu", "gelu", "", None, 1, ["silu"], {"silu": 1}])
def test_another_function_is_refused_with_the_names_that_are_taken(name: object) -> None:
    with pytest.raises(UserError, match="silu, swish") as error:
        activation_name(name, ("silu",), "hidden_act")
    assert error.value.code == "export.activation"
