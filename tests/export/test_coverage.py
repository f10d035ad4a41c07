"""A checkpoint that is more than the exported model, or another one, is not built as if it were that model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hvlc.errors import UserError
from hvlc.export import export_bundle
from hvlc.weights.checkpoint import Checkpoint
from tests.export.tiny_families import save_text, save_vision
from tests.helpers.commands import Hvlc

Weights = dict[str, np.ndarray]
TABLE, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def rewritten(directory: Path, change: Callable[[Weights], Any] = lambda weights: None, **config: Any) -> Path:
    """The checkpoint with other weights and configuration."""
    path = directory / "model.safetensors"
    weights = dict(load_file(path))
    change(weights)
    save_file(weights, path)
    content = json.loads((directory / "config.json").read_text("utf-8"))
    (directory / "config.json").write_text(json.dumps(content | config), "utf-8")
    return directory


def refusal(directory: Path) -> UserError:
    with pytest.raises(UserError) as error:
        export_bundle(Checkpoint.open(directory))
    assert error.value.fix
    return error.value


def score(weights: Weights) -> None:
    weights["score.weight"] = np.ones((1, 64), np.float32)


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForSequenceClassification",
        "LlamaForTokenClassification",
        "LlamaForQuestionAnswering",
        "LlamaModel",
        "LlamaForRewardModel",
    ],
)
def test_an_architecture_of_another_task_is_refused(tmp_path: Path, name: str) -> None:
    directory = save_text(tmp_path / "checkpoint", "llama", tie_word_embeddings=True)
    error = refusal(rewritten(directory, score, architectures=[name]))
    assert error.code == "checkpoint.architecture"
    assert name in error.cause


def test_a_vision_tower_that_classifies_is_refused(tmp_path: Path) -> None:
    directory = save_vision(tmp_path / "checkpoint", "siglip")
    error = refusal(rewritten(directory, architectures=["SiglipForImageClassification"]))
    assert error.code == "checkpoint.architecture"


@pytest.mark.parametrize("names", ["LlamaForCausalLM", [1], {}, [None]])
def test_architectures_that_are_not_names_are_refused(tmp_path: Path, names: Any) -> None:
    assert refusal(rewritten(save_text(tmp_path / "c", "llama"), architectures=names)).code == "checkpoint.config"


@pytest.mark.parametrize("names", [None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"]])
def test_the_architecture_of_the_task_is_taken(tmp_path: Path, names: Any) -> None:
    assert export_bundle(Checkpoint.open(rewritten(save_text(tmp_path / "c", "llama"), architectures=names)))


def test_tensors_that_no_graph_reads_are_refused_by_name(tmp_path: Path, hvlc: Hvlc) -> None:
    directory = save_text(tmp_path / "checkpoint", "llama", tie_word_embeddings=True)
    rewritten(directory, score)
    error = refusal(directory)
    assert error.code == "checkpoint.unread"
    assert "score.weight" in error.cause
    assert hvlc("plan", directory, "--recipe", "float32").code == 2


def test_every_unread_tensor_counts(tmp_path: Path) -> None:
    def extra(weights: Weights) -> None:
        weights.update({f"v_head.{i}.weight": np.ones(2, np.float32) for i in range(5)})

    assert "and 2 more" in refusal(rewritten(save_text(tmp_path / "c", "llama"), extra)).cause


HARMLESS: dict[str, np.ndarray] = {
    "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32),
    "model.rotary_emb.inv_freq": np.ones(8, np.float32),
    "model.position_ids": np.arange(8),
    "model.layers.1.self_attn.masked_bias": np.full((1,), -1e4, np.float32),
    "model.causal_mask": np.ones((2, 2), np.bool_),
    "model.layers.0.self_attn.bias": np.tril(np.ones((1, 1, 8, 8), np.bool_)),
    "model.layers.0.self_attn.k_scale": np.ones(1, np.float32),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_kinds_that_change_nothing_are_notes_of_the_plan(tmp_path: Path, hvlc: Hvlc, name: str) -> None:
    directory = rewritten(save_text(tmp_path / "c", "llama"), lambda w: w.update({name: HARMLESS[name]}))
    result = hvlc("plan", directory, "--recipe", "float32", "--json")
    assert result.code == 0
    assert [name in note for note in result.json["notes"]] == [True]


def test_numbers_under_a_masks_name_count(tmp_path: Path) -> None:
    def add(weights: Weights) -> None:
        weights["model.layers.0.self_attn.bias"] = np.ones((1, 1, 8, 8), np.float32)

    assert refusal(rewritten(save_text(tmp_path / "c", "llama"), add)).code == "checkpoint.unread"


def test_a_plan_without_leftovers_has_no_notes(tmp_path: Path, hvlc: Hvlc) -> None:
    assert hvlc("plan", save_text(tmp_path / "c", "llama"), "--recipe", "float32", "--json").json["notes"] == []


@pytest.mark.parametrize("family", ["siglip", "siglip2"])
def test_the_text_tower_that_is_left_out_is_noted(tmp_path: Path, family: str) -> None:
    checkpoint = Checkpoint.open(save_vision(tmp_path / "c", family))
    export_bundle(checkpoint)
    assert len(checkpoint.notes) == 1
    assert "text_model." in checkpoint.notes[0]


def test_a_pooling_head_that_the_configuration_does_not_have_is_refused(tmp_path: Path) -> None:
    directory = rewritten(save_vision(tmp_path / "c", "siglip_vision_model"), vision_use_head=False)
    error = refusal(directory)
    assert error.code == "checkpoint.unread"
    assert "head." in error.cause


def test_a_tied_table_may_be_stored_under_the_heads_name(tmp_path: Path) -> None:
    """transformers ties in both directions, whichever of the two is stored."""
    directory = save_text(tmp_path / "c", "llama", tie_word_embeddings=True)
    rewritten(directory, lambda w: w.update({HEAD: w.pop(TABLE)}))
    graph = export_bundle(Checkpoint.open(directory)).components["model"].graph
    table, head = (graph.initializers[name].const_value for name in (TABLE, HEAD))
    assert table is not None
    assert head is not None
    np.testing.assert_array_equal(table.numpy(), head.numpy().T)


def test_an_untied_table_under_the_heads_name_is_missing(tmp_path: Path) -> None:
    directory = save_text(tmp_path / "c", "llama", tie_word_embeddings=False)
    rewritten(directory, lambda w: w.pop(TABLE))
    checkpoint = Checkpoint.open(directory)
    export_bundle(checkpoint)
    assert [TABLE in problem.cause for problem in checkpoint.problems] == [True]


@pytest.mark.parametrize("tied", [True, False])
def test_the_model_inside_is_taken_under_its_own_names(tmp_path: Path, tied: bool) -> None:
    """transformers' text models add the prefix that every name but the head's lacks."""
    directory = save_text(tmp_path / "c", "llama", tie_word_embeddings=tied)
    weights = dict(load_file(directory / "model.safetensors"))
    rewritten(directory, lambda w: w.update({name.removeprefix("model."): w.pop(name) for name in list(w)}))
    checkpoint = Checkpoint.open(directory)
    graph = export_bundle(checkpoint).components["model"].graph
    assert not checkpoint.problems
    assert not checkpoint.notes
    table = graph.initializers[TABLE].const_value
    assert table is not None
    np.testing.assert_array_equal(table.numpy(), weights[TABLE])


def test_what_no_graph_reads_is_refused_under_the_names_of_the_model_inside(tmp_path: Path) -> None:
    directory = save_text(tmp_path / "c", "llama", tie_word_embeddings=True)
    rewritten(directory, lambda w: w.update({name.removeprefix("model."): w.pop(name) for name in list(w)}))
    error = refusal(rewritten(directory, score))
    assert error.code == "checkpoint.unread"
    assert "score.weight" in error.cause


def test_the_model_inside_has_no_head_of_its_own(tmp_path: Path) -> None:
    directory = save_text(tmp_path / "c", "llama", tie_word_embeddings=False)
    rewritten(directory, lambda w: w.pop(HEAD))
    rewritten(directory, lambda w: w.update({name.removeprefix("model."): w.pop(name) for name in list(w)}))
    checkpoint = Checkpoint.open(directory)
    export_bundle(checkpoint)
    assert [HEAD in problem.cause for problem in checkpoint.problems] == [True]
