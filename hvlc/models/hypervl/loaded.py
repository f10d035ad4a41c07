"""HyperVL's own parts where transformers answers: the resolution compressor, and two encoders."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from hvlc.models.hypervl.processing import cap_scale
from hvlc.models.loaded import LoadedModel


class LoadedHyperVL(LoadedModel):
    """A HyperVL checkpoint; see `LoadedModel`."""

    def scales(self, images: Sequence[Image.Image], *, vrc: bool) -> list[float]:
        if not vrc or not images:
            return super().scales(images, vrc=vrc)
        scales: list[float] = self.model.predict_scale(**self.processor.image_processor.proxies(images)).tolist()
        return scales

    def used(self, images: Sequence[Image.Image], scales: Sequence[float]) -> list[float]:
        cut = self.processor.image_processor
        pairs = zip(images, scales, strict=True)
        return [float(cap_scale(i.height, i.width, scale, cut.cell_size, cut.max_visual_tokens)) for i, scale in pairs]

    def inputs(self, prompt: str, images: Sequence[Image.Image], scales: Sequence[float]) -> dict[str, Any]:
        text = self.text(prompt, len(images))
        return dict(self.processor(images=list(images) or None, text=text, scales=list(scales) or None))

    def chosen(self, encoder: str) -> dict[str, Any]:
        return {"branch": encoder}
