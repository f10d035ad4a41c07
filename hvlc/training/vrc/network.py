"""The compressor's network, with or without an eye on the question; parameters are named as the export reads them."""

from __future__ import annotations

import torch
from torch import nn

from hvlc.models.hypervl.configuration import HyperVLResolutionConfig
from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration, HyperVLResolutionCompressor
from hvlc.zoo import nano_checkpoint


class QuestionBranch(nn.Module):
    """Gains and shifts of channels by the mean of the question's rows (FiLM, Perez et al., arXiv 1709.07871).

    Args:
        vocabulary: rows of the table.
        width: of the table.
        channels: that are scaled and shifted.
    """

    def __init__(self, vocabulary: int, width: int, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.film = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 `[n, tokens]`, -1 where there is none, to gain and shift float `[n, channels, 1, 1]`."""
        there = (ids >= 0).float()
        rows = self.table(ids.clamp(min=0)) * there[..., None]
        mean = rows.sum(1) / there.sum(1, keepdim=True).clamp(min=1)
        gain, shift = self.film(mean)[..., None, None].chunk(2, 1)
        return gain, shift


class ResolutionNetwork(HyperVLResolutionCompressor):
    """HyperVL's compressor; with a question, its last features are scaled and shifted by it.

    Args:
        config: of the compressor.
        vocabulary: of the question's tokens. None: the image alone decides.
        width: of the question's table.
    """

    def __init__(self, config: HyperVLResolutionConfig, vocabulary: int | None = None, width: int = 16) -> None:
        super().__init__(config)
        channels = self.attention.in_channels
        self.question = None if vocabulary is None else QuestionBranch(vocabulary, width, channels)

    def forward(self, proxy_values: torch.Tensor, question_ids: torch.Tensor | None = None) -> torch.Tensor:
        """float `[n, 3, P, P]` and int64 `[n, tokens]` to float `[n]`: log of (wanted longest side / proxy side)."""
        features = self.backbone(proxy_values).last_hidden_state
        if self.question is not None and question_ids is not None:
            gain, shift = self.question(question_ids)
            features = features + features * gain + shift
        weights = self.attention(features).flatten(2).softmax(-1)
        pooled = (features.flatten(2) * weights).sum(-1)
        found: torch.Tensor = self.linear_2(self.act(self.linear_1(pooled))).squeeze(-1)
        return found


def start(network: ResolutionNetwork, table: torch.Tensor | None) -> None:
    """Take over the shipped compressor, which has seen documents, and the model's own embeddings for the question.

    Args:
        network: of the shipped one's depth.
        table: float `[vocabulary, hidden]`, the model's embeddings, projected to the branch's width. None: as it is.
    """
    shipped = HyperVLForConditionalGeneration.from_pretrained(nano_checkpoint()).model.resolution_compressor
    state = {k: v for k, v in shipped.state_dict().items() if k in network.state_dict()}
    network.load_state_dict(state, strict=False)
    if network.question is not None and table is not None:
        own = network.question.table.weight
        centred = table.float() - table.float().mean(0)
        _, _, directions = torch.pca_lowrank(centred, q=min(own.shape[1], *centred.shape), center=False, niter=2)
        projected = centred @ directions
        with torch.no_grad():
            own.zero_()
            own[:, : projected.shape[1]] = projected / projected.std().clamp(min=1e-6)
