"""Start `smolvlm-nano` from what `hypervl-nano` knows.

The tower reads already; SmolVLM's is the same, with fewer positions. The decoder is a Qwen3, which normalizes queries
and keys; Llama does not, so the normalization is folded into the projections at its mean over documents. The connector
is fitted by least squares to the two-layer projector that it replaces. What comes out is a start, not the same model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import SmolVLMForConditionalGeneration

from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration
from hvlc.models.hypervl.processing import HyperVLProcessor
from hvlc.training import smolvlm_tokenizer as own
from hvlc.training import tokenizer as theirs
from hvlc.training.answering import pack, pairs, run
from hvlc.training.reading import page
from hvlc.zoo.documents import render

#: Train documents over which norms are averaged.
DOCUMENTS = 24

#: Share of the mean squared feature that is added to the normal equations of the connector.
RIDGE = 1e-3

#: Special tokens that start from another model's, by name.
COUNTERPARTS = {
    own.END_OF_TEXT: theirs.END_OF_TEXT,
    own.START: theirs.USER,
    own.END: theirs.END_OF_TURN,
    own.FAKE: theirs.VISION_START,
    own.OVERVIEW: theirs.VISION_END,
    own.IMAGE: theirs.IMAGE,
    **dict.fromkeys(own.TILES, theirs.ROW),
}


@torch.no_grad()
def start_tower(model: SmolVLMForConditionalGeneration, teacher: HyperVLForConditionalGeneration) -> None:
    """Copy the large branch's tower; positions are those of the top left of its larger tile."""
    tower, source = model.model.vision_model, teacher.model.branches["large"].tower
    state = {name.removeprefix("vision_model."): value for name, value in source.state_dict().items()}
    name = "embeddings.position_embedding.weight"
    side, there = (int(count**0.5) for count in (tower.embeddings.num_positions, len(state[name])))
    state[name] = state[name].unflatten(0, (there, there))[:side, :side].flatten(0, 1)
    tower.load_state_dict(state)


@torch.no_grad()
def start_decoder(
    model: SmolVLMForConditionalGeneration, teacher: HyperVLForConditionalGeneration, processor: HyperVLProcessor
) -> None:
    """Copy the decoder, the norms of queries and keys folded at their mean, and the embeddings by byte and name."""
    decoder, source = model.model.text_model, teacher.model.language_model
    with _mean_squares(source) as squares:
        _read_documents(teacher, processor)
    state = {name: value.clone() for name, value in source.state_dict().items()}
    for path, found in squares.items():
        gain = state.pop(f"{path}.weight") * torch.cat(found).mean(0).rsqrt()[:, None]
        projection = f"{path.removesuffix('_norm')}_proj.weight"
        state[projection] *= gain.flatten()[:, None]
    name = "embed_tokens.weight"
    table, known = decoder.embed_tokens.weight.clone(), state[name]
    table[:256] = known[:256]
    for token, counterpart in COUNTERPARTS.items():
        noise = 0.1 * known.std() * torch.randn(known.shape[1])  # tiles that begin alike would stay alike
        table[own.special_token_id(token)] = known[theirs.special_token_id(counterpart)] + noise
    state[name] = table
    decoder.load_state_dict(state)


@torch.no_grad()
def fit_connector(
    model: SmolVLMForConditionalGeneration, teacher: HyperVLForConditionalGeneration, tiles: torch.Tensor
) -> float:
    """Fit the connector to the teacher's projector on the features of `tiles`, float `[n, 3, T, T]`.

    Returns:
        The share of the variance that is left.
    """
    connector, branch = model.model.connector, teacher.model.branches["large"]
    patches = model.model.vision_model(tiles).last_hidden_state
    cells = connector.pixel_shuffle(patches, connector.scale_factor).flatten(0, 1).double()
    wanted = branch.projector(cells.float()).double()
    normal = cells.T @ cells
    normal += RIDGE * normal.diagonal().mean() * torch.eye(len(normal), dtype=torch.float64)
    weight = torch.linalg.solve(normal, cells.T @ wanted).T
    connector.modality_projection.proj.weight.copy_(weight)
    return float((cells @ weight.T - wanted).var() / wanted.var())


@contextmanager
def _mean_squares(decoder: nn.Module) -> Iterator[dict[str, list[torch.Tensor]]]:
    """Collect the mean squares `[tokens, heads]` of what every norm of queries or keys is given, by its path."""
    found: dict[str, list[torch.Tensor]] = {}
    handles = []
    for path, module in decoder.named_modules():
        if path.endswith(("q_norm", "k_norm")):

            def keep(_: nn.Module, inputs: tuple[torch.Tensor], path: str = path) -> None:
                found.setdefault(path, []).append(inputs[0].float().square().mean(-1).flatten(0, 1))

            handles.append(module.register_forward_pre_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _read_documents(teacher: HyperVLForConditionalGeneration, processor: HyperVLProcessor) -> None:
    patch = teacher.config.large_vision_config.patch_size
    for index in range(DOCUMENTS):
        document = render("train", index)
        seen = page(document, 1.0, processor.image_processor, patch)
        run(teacher, pack([seen], [pairs(document)], length_multiple=1), "large", autocast=False)
