"""Attention for training on a CPU: plain matrix products with a hand-written backward.

PyTorch's CPU flash kernel spends several times its forward on the backward at head widths of
32 to 64 (2.13, AVX512-BF16); three batched products are faster and give the same numbers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "hvlc_matmul"


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float,
    ) -> torch.Tensor:
        scores = torch.matmul(query * scale, key.transpose(-1, -2))
        if mask is not None:
            scores += mask
        weights = torch.softmax(scores, -1)
        ctx.save_for_backward(query, key, value, weights)
        ctx.scale = scale
        return torch.matmul(weights, value)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        gradient = gradients[0].to(weights.dtype)
        to_value = torch.matmul(weights.transpose(-1, -2), gradient)
        to_weights = torch.matmul(gradient, value.transpose(-1, -2))
        to_scores = torch._softmax_backward_data(to_weights, weights, -1, weights.dtype)
        to_query = torch.matmul(to_scores, key) * ctx.scale
        to_key = torch.matmul(to_scores.transpose(-1, -2), query) * ctx.scale
        return to_query, to_key, to_value, None, None


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Scaled dot-product attention in the form that transformers calls.

    Args:
        module: The attention layer; grouped key and value heads are repeated as it says.
        query: float `[batch, heads, positions, width]`.
        key: float `[batch, key heads, positions, width]`.
        value: float `[batch, key heads, positions, width]`.
        attention_mask: Additive, broadcast to `[batch, heads, positions, positions]`, or None.
        scaling: Factor on the scores.

    Returns:
        float `[batch, positions, heads, width]` and None.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = value.dtype
    with torch.autocast("cpu", enabled=False):
        mask = None if attention_mask is None else attention_mask.to(dtype)
        parts = (x.to(dtype).contiguous() for x in (query, key, value))
        output = _Attend.apply(*parts, mask, scale)
    return output.transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
