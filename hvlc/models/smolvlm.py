"""SmolVLM's processor for images and text, where torchvision and num2words are not installed.

transformers builds its SmolVLMProcessor with a video processor only, which needs torchvision, and words for numbers of
frames. Neither has a part in a prompt about images.
"""

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, SmolVLMImageProcessorPil, SmolVLMProcessor
from transformers.processing_utils import ProcessorMixin

#: Settings of the full processor for videos: frames are prepared as images are.
_SHARED = (
    "do_convert_rgb",
    "do_normalize",
    "do_pad",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "max_image_size",
    "resample",
    "rescale_factor",
    "size",
)


class SmolVLMImageTextProcessor(SmolVLMProcessor):
    """transformers' own processor but for its constructor.

    Args:
        image_processor: the one on Pillow.
        tokenizer: has SmolVLM's special tokens.
        image_seq_len: visual tokens of a tile.
        chat_template: Jinja.
    """

    def __init__(
        self,
        image_processor: SmolVLMImageProcessorPil,
        tokenizer: Any,
        image_seq_len: int = 169,
        chat_template: str | None = None,
        **_: Any,
    ) -> None:
        self.fake_image_token = getattr(tokenizer, "fake_image_token", "<fake_token_around_image>")
        self.image_token = getattr(tokenizer, "image_token", "<image>")
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.end_of_utterance_token = getattr(tokenizer, "end_of_utterance_token", "<end_of_utterance>")
        self.global_image_token = getattr(tokenizer, "global_image_token", "<global-img>")
        self.video_token = getattr(tokenizer, "video_token", "<video>")
        self.image_seq_len = image_seq_len
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def load_processor(directory: Path) -> SmolVLMImageTextProcessor:
    """The processor of a checkpoint, with the image processor on Pillow."""
    settings = json.loads((directory / "processor_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(directory)
    images = SmolVLMImageProcessorPil.from_pretrained(directory)
    return SmolVLMImageTextProcessor(images, tokenizer, settings["image_seq_len"], tokenizer.chat_template)


def save_processor(processor: SmolVLMImageTextProcessor, directory: Path) -> None:
    """Save what transformers' own SmolVLMProcessor loads, the settings of its video processor included."""
    processor.save_pretrained(directory)
    path = directory / "processor_config.json"
    settings = json.loads(path.read_text())
    images = settings["image_processor"]
    images["image_processor_type"] = "SmolVLMImageProcessor"
    settings["video_processor"] = {name: images[name] for name in _SHARED}
    settings["video_processor"]["video_processor_type"] = "SmolVLMVideoProcessor"
    settings["processor_class"] = "SmolVLMProcessor"
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    path = directory / "tokenizer_config.json"
    settings = {**json.loads(path.read_text()), "processor_class": "SmolVLMProcessor"}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
