"""What a Gemma 3 file says and leaves out, as llama.cpp reads it."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from hvlc.errors import UserError
from hvlc.weights.gguf.file import read_gguf
from hvlc.weights.gguf.gemma3 import derived, obstacles
from hvlc.weights.gguf.names import derived_config

#: Of the 4B, but for the layers.
SETTINGS: dict[str, Any] = {
    "block_count": 7,
    "embedding_length": 2560,
    "attention.head_count": 8,
    "attention.key_length": 256,
    "attention.sliding_window": 1024,
}
ROPE = {"rope_theta": 1_000_000.0, "rope_type": "linear", "factor": 8.0}
S, F = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        (None, [S] * 5 + [F, S]),
        (3, [S, S, F, S, S, F, S]),
        (1, [F] * 7),
        (True, [S] * 7),
        ([True, False, False, True, True, True, False], [S, F, F, S, S, S, F]),
    ],
)
def test_layers_have_windows_by_period_or_by_name(pattern: Any, kinds: list[str]) -> None:
    settings = SETTINGS if pattern is None else SETTINGS | {"attention.sliding_window_pattern": pattern}
    assert obstacles(settings) == []
    assert derived(settings, ROPE)["layer_types"] == kinds


def test_layers_with_a_window_have_a_base_of_their_own_and_no_scaling() -> None:
    found = derived(SETTINGS, ROPE)["rope_parameters"]
    assert found == {F: ROPE, S: {"rope_type": "default", "rope_theta": 10000.0}}
    other = derived(SETTINGS | {"rope.freq_base_swa": 500.0}, ROPE)["rope_parameters"]
    assert other[S]["rope_theta"] == 500.0


def test_the_scores_of_the_largest_are_scaled_by_the_width_of_the_model() -> None:
    largest = {"block_count": 62, "embedding_length": 5376, "attention.head_count": 32, "attention.key_length": 128}
    assert derived(SETTINGS, ROPE)["query_pre_attn_scalar"] == 256
    assert derived(SETTINGS | largest, ROPE)["query_pre_attn_scalar"] == 168  # as its config.json says


@pytest.mark.parametrize("pattern", [0, -6, "six", 2.0, [True] * 3, [1, 0, 0, 1, 1, 1, 0]])
def test_another_pattern_is_refused(pattern: Any) -> None:
    (cause,) = obstacles(SETTINGS | {"attention.sliding_window_pattern": pattern})
    assert "expected is a period" in cause


def test_everything_that_is_missing_or_not_read_is_said_at_once(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "gemma3")
    writer.add_final_logit_softcapping(30.0)
    writer.add_sliding_window_pattern(0)
    writer.add_tensor("token_embd.weight", np.ones((4, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UserError) as error:
        derived_config(read_gguf(tmp_path / "a.gguf"))
    causes = " ".join(problem.cause for problem in error.value.problems)
    for said in (
        "final_logit_softcapping is 30.0, which is not read",
        "attention.sliding_window is None",
        "attention.key_length is None",
        "attention.sliding_window_pattern is 0",
    ):
        assert said in causes
