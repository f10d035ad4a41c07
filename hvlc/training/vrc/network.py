"""The compressor's network, with or without an eye on the question; parameters are named as the export reads them."""

from __future__ import annotations

import torch
from torch import nn

from hvlc.export.mobilenet import SPREADS
from hvlc.models.hypervl.configuration import HyperVLResolutionConfig
from hvlc.models.hypervl.modeling import HyperVLForConditionalGeneration, HyperVLResolutionCompressor
from hvlc.zoo import nano_checkpoint

#: Tokens that a window over the question spans, and channels of each of its two layers.
WINDOW, CHANNELS = 5, 48


class QuestionBranch(nn.Module):
    """Gains and shifts of channels by what the question says (FiLM, Perez et al., arXiv 1709.07871).

    Two convolutions over its tokens and the largest of each channel: words, however a tokenizer cuts them.

    Args:
        vocabulary: rows of the table.
        width: of the table.
        channels: that are scaled and shifted.
    """

    def __init__(self, vocabulary: int, width: int, channels: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocabulary, width)
        self.conv_1 = nn.Conv1d(width, CHANNELS, WINDOW, padding=WINDOW // 2)
        self.conv_2 = nn.Conv1d(CHANNELS, CHANNELS, WINDOW, padding=WINDOW // 2)
        self.film = nn.Linear(CHANNELS, 2 * channels)
        nn.init.zeros_(self.film.weight)
        nn.init.zeros_(self.film.bias)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """int64 `[n, tokens]`, -1 where there is none, to gain and shift float `[n, channels, 1, 1]`."""
        there = (ids >= 0).float()[:, None]
        rows = self.table(ids.clamp(min=0)).transpose(1, 2) * there
        found = torch.relu(self.conv_1(rows)) * there
        found = torch.relu(self.conv_2(found)) * there
        gain, shift = self.film(found.amax(-1))[..., None, None].chunk(2, 1)
        return gain, shift


class ResolutionNetwork(HyperVLResolutionCompressor):
    """HyperVL's compressor, which also says how sure it is; with a question, its last features follow that.

    The size below which an answer fails is distributed logistically around the predicted one, on a log scale. A spread
    wide or narrow tells how much a scale near it risks (docs/vrc.md).

    Args:
        config: of the compressor.
        vocabulary: of the question's tokens. None: the image alone decides.
        width: of the question's table.
    """

    def __init__(self, config: HyperVLResolutionConfig, vocabulary: int | None = None, width: int = 16) -> None:
        super().__init__(config)
        channels = self.attention.in_channels
        self.question = None if vocabulary is None else QuestionBranch(vocabulary, width, channels)
        self.spread = nn.Linear(config.hidden_size, 1)
        nn.init.zeros_(self.spread.weight)
        nn.init.constant_(self.spread.bias, -2.0)

    def forward(self, proxy_values: torch.Tensor, question_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Predict by views, and by questions where the network reads them.

        Args:
            proxy_values: float `[n, 3, P, P]`.
            question_ids: int64 `[n, tokens]`.

        Returns:
            float `[n, 2]`: log of (smallest longest side / P), and log of the spread of that log.
        """
        return self.decide(self.backbone(proxy_values).last_hidden_state, question_ids)

    def decide(self, features: torch.Tensor, question_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Prediction by features of the backbone, float `[n, channels, P / 32, P / 32]`; see `forward`."""
        if self.question is not None and question_ids is not None:
            gain, shift = self.question(question_ids)
            features = features + features * gain + shift
        weights = self.attention(features).flatten(2).softmax(-1)
        hidden = self.act(self.linear_1((features.flatten(2) * weights).sum(-1)))
        return torch.cat([self.linear_2(hidden), self.spread(hidden).clamp(*SPREADS)], -1)


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
