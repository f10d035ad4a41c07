"""Settings by which transformers would import or fetch code are refused wherever they stand."""

import inspect
from typing import Any

import pytest
import transformers.dynamic_module_utils
import transformers.integrations.hub_kernels
import transformers.pipelines

from hvlc.errors import UserError
from hvlc.inputs.foreign_code import check_code

NAMED: dict[str, Any] = {
    "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"},
    "auto_map of another repository": {"auto_map": {"AutoTokenizer": ["user/repo--tok.Slow", None]}},
    "custom_pipelines": {"x": {"impl": "pipe.Pipe"}},
    "custom_generate": "user/repo",
    "trust_remote_code": True,
    "use_kernels": True,
    "kernel_config": {"RMSNorm": "user/kernel:Norm"},
    "attn_implementation": "user/kernel",
    "_attn_implementation": "user/kernel@v1",
    "_attn_implementation_internal": "paged|user/kernel:function",
    "experts_implementation": {"": "eager", "text_config": "user/kernel"},
}
HARMLESS: dict[str, Any] = {
    "auto_map": {},
    "trust_remote_code": False,
    "custom_pipelines": None,
    "use_kernels": False,
    "attn_implementation": "sdpa",
    "_attn_implementation": {"": "eager", "text_config": "flash_attention_2"},
    "_attn_implementation_autoset": True,
    "_name_or_path": "user/repository",
}


def settings(key: str, value: Any) -> dict[str, Any]:
    return {key: value} if " " not in key else value


@pytest.mark.parametrize("key", NAMED)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_code_is_refused_at_any_depth(key: str, depth: int) -> None:
    found: Any = settings(key, NAMED[key])
    for _ in range(depth):
        found = {"hidden_size": 4, "inner": [1, found]}
    with pytest.raises(UserError, match=key.split(maxsplit=1)[0]) as error:
        check_code(found, "config.json")
    assert error.value.code == "checkpoint.code"
    assert "remove the key" in error.value.fix


def test_all_places_are_told_at_once() -> None:
    with pytest.raises(UserError) as error:
        check_code({"auto_map": {"AutoConfig": "a.B"}, "text_config": {"attn_implementation": "a/b"}}, "config.json")
    assert len(error.value.problems) == 2


@pytest.mark.parametrize("key", HARMLESS)
def test_what_names_no_code_is_taken(key: str) -> None:
    check_code({key: HARMLESS[key], "inner": {key: HARMLESS[key]}}, "config.json")


def test_values_of_any_type_are_looked_at() -> None:
    check_code([1, None, "a/b", {"1": [True, 2.5]}], "config.json")
    check_code("auto_map", "config.json")


def test_transformers_goes_by_these_names() -> None:
    """Where it looks for code; another name in a later version has to be known here."""
    assert '"auto_map"' in inspect.getsource(transformers.dynamic_module_utils)
    assert '"custom_pipelines"' in inspect.getsource(transformers.pipelines)
    assert transformers.integrations.hub_kernels.is_kernel("user/kernel")
    assert not transformers.integrations.hub_kernels.is_kernel("flash_attention_2")
