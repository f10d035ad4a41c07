"""Original names of InternVL's parameters (remote code of OpenGVLab, `internvl_chat`; Qianfan-OCR is saved so too).

A checkpoint is renamed without being read: the fused projection of queries, keys and values is three ranges of rows,
each a tensor in the same file.
"""

import re
from collections.abc import Iterator
from dataclasses import replace

from hvlc.errors import UserError
from hvlc.weights.checkpoint import Checkpoint, StoredTensor

_TOWER, _CONNECTOR = "model.vision_tower.", "model.multi_modal_projector."
_WHOLE = (
    (r"vision_model\.", _TOWER),
    (r"mlp1\.0\.", f"{_CONNECTOR}layer_norm."),
    (r"mlp1\.1\.", f"{_CONNECTOR}linear_1."),
    (r"mlp1\.3\.", f"{_CONNECTOR}linear_2."),
    # transformers saves a Qianfan-OCR with the "encoder" of its tower in the text model too
    (r"language_model\.model\.(encoder\.(?=layers\.))?", "model.language_model."),
    (r"language_model\.lm_head\.", "lm_head."),
)
_TOWER_PARTS = (
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls1$", ".lambda_1"),
    (r"\.ls2$", ".lambda_2"),
    (r"\.class_embedding$", ".cls_token"),
    (r"\.position_embedding$", ".position_embeddings"),
    (r"\.patch_embedding\.", ".patch_embeddings.projection."),
)


def with_transformers_names(checkpoint: Checkpoint, layers: str) -> Checkpoint:
    """The checkpoint with the names that transformers' modules have; one that has them already is returned as it is.

    Args:
        checkpoint: in either form.
        layers: dotted name of the tower's layers inside transformers' tower.

    Raises:
        UserError: fused projections do not hold three matrices.
    """
    if not any(name.startswith("vision_model.") for name in checkpoint.tensors):
        return checkpoint
    tensors = {}
    for name, tensor in checkpoint.tensors.items():
        for part, found in _split(_renamed(name, layers), tensor):
            tensors[part] = found
    return replace(checkpoint, tensors=tensors)


def _renamed(name: str, layers: str) -> str:
    for pattern, new in _WHOLE:
        found = re.match(pattern, name)
        if found:
            name = new + name[found.end() :]
            break
    if not name.startswith(_TOWER):
        return name
    name = re.sub(rf"^{re.escape(_TOWER)}encoder\.layers\.", f"{_TOWER}{layers}.", name)
    for pattern, new in _TOWER_PARTS:
        name = re.sub(pattern, new, name)
    return name


def _split(name: str, tensor: StoredTensor) -> Iterator[tuple[str, StoredTensor]]:
    """The tensor under its name, or the three that a fused projection holds one below the other."""
    before, fused, leaf = name.partition(".attention.qkv.")
    if not fused or leaf not in ("weight", "bias"):
        yield name, tensor
        return
    if not tensor.shape or tensor.shape[0] % 3:
        cause = f"{tensor.name} is {list(tensor.shape)}, expected are queries, keys and values one below the other"
        raise UserError("checkpoint.weights", cause, "save the whole model again")
    shape = (tensor.shape[0] // 3, *tensor.shape[1:])
    size = tensor.size // 3 * tensor.dtype.itemsize
    for index, part in enumerate("qkv"):
        offset = tensor.offset + index * size
        yield f"{before}.attention.{part}_proj.{leaf}", replace(tensor, shape=shape, offset=offset)
