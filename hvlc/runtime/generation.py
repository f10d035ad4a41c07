"""Answers from a package: prompt, visual tokens, greedy decoding through onnxruntime-genai."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnxruntime_genai as og
from PIL import Image

from hvlc.errors import UserError
from hvlc.manifest import Manifest
from hvlc.results import Answered
from hvlc.runtime.images import to_array
from hvlc.runtime.vision import Tiled, Vision


@dataclass
class Generation:
    """One running answer: iterate for pieces of text, then read `answered`.

    Attributes:
        prompt_tokens: length of the prompt, visual tokens included.
        encoder: which vision encoder ran; "" for text only.
        images: the images after the front graph.
        tokens: what was generated so far, the end token included.
    """

    generator: og.Generator
    stream: "og.TokenizerStream"
    prompt_tokens: int
    encoder: str
    images: Sequence[Tiled]
    end_tokens: frozenset[int]
    max_new_tokens: int
    started: float
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    _first: float = 0.0
    _last: float = 0.0

    def __iter__(self) -> Iterator[str]:
        while not self.generator.is_done() and len(self.tokens) < self.max_new_tokens:
            self.generator.generate_next_token()
            token = int(self.generator.get_next_tokens()[0])
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self.tokens.append(token)
            if token not in self.end_tokens:
                piece = self.stream.decode(token)
                self.text += piece
                yield piece

    @property
    def answered(self) -> Answered:
        """The record of a finished answer."""
        return Answered(
            text=self.text,
            tokens=tuple(self.tokens),
            encoder=self.encoder,
            scales=tuple(image.scale for image in self.images),
            tiles=sum(len(image.tiles) for image in self.images),
            visual_tokens=sum(image.visual_tokens for image in self.images),
            prompt_tokens=self.prompt_tokens,
            time_to_first_token=max(0.0, self._first - self.started),
            decode_seconds=self._last - self._first,
        )


class VisionLanguageModel:
    """A package, opened and verified.

    Args:
        directory: what `hvlc build` wrote.
        name: label in reports; the directory's name when empty.
        verify: hold every file against its digest first.
        tile_batch: tiles per encoder run.
        threads: threads of the vision sessions; 0 lets onnxruntime choose.

    Raises:
        UserError: no package, or a file was changed.
    """

    def __init__(
        self, directory: Path, *, name: str = "", verify: bool = True, tile_batch: int = 4, threads: int = 0
    ) -> None:
        self.manifest = Manifest.load(directory)
        if verify:
            self.manifest.verify(directory)
        self.directory = directory
        self.name = name or directory.resolve().name
        self.runs_on = "onnxruntime CPU"
        self._vision = Vision(directory, self.manifest, tile_batch, threads)
        self._model = og.Model(str(directory))
        self._tokenizer = og.Tokenizer(self._model)
        config = json.loads((directory / "genai_config.json").read_text("utf-8"))
        eos = config["model"]["eos_token_id"]
        self._end_tokens = frozenset(eos if isinstance(eos, list) else [eos])

    def answer(
        self, prompt: str, images: Sequence[Image.Image], *, encoder: str, vrc: bool, max_new_tokens: int
    ) -> Answered:
        """Answer greedily; see `start` for the arguments."""
        generation = self.start(prompt, images, encoder=encoder, vrc=vrc, max_new_tokens=max_new_tokens)
        for _ in generation:
            pass
        return generation.answered

    def start(
        self,
        prompt: str,
        images: Sequence[Image.Image] = (),
        *,
        encoder: str = "auto",
        vrc: bool = True,
        max_visual_tokens: int | None = None,
        max_new_tokens: int = 128,
    ) -> Generation:
        """Run vision and prefill; the answer streams from the returned generation.

        Args:
            prompt: the question, without template or placeholders.
            images: RGB images in the order they are shown.
            encoder: an encoder's name, or "auto" for the package's policy.
            vrc: whether the resolution compressor chooses each image's scale.
            max_visual_tokens: bound per image; the package's when None.
            max_new_tokens: bound of generated tokens.

        Raises:
            UserError: unknown encoder, a prompt with image placeholders of its own, or one that is too long.
        """
        started = time.perf_counter()
        tiled = [self._vision.tile(to_array(i), compress=vrc, max_visual_tokens=max_visual_tokens) for i in images]
        chosen = self._vision.choose(encoder, sum(t.visual_tokens for t in tiled))
        ids = self.prompt_ids(prompt, tiled)
        self._check_length(len(ids), max_new_tokens)
        tensors = og.NamedTensors()
        tensors["input_ids"] = ids[None]
        tensors["num_image_tokens"] = np.array([sum(t.visual_tokens for t in tiled)], np.int64)
        if tiled:
            tensors["host_image_features"] = np.concatenate([self._vision.encode(t, chosen) for t in tiled])
        params = og.GeneratorParams(self._model)
        params.set_search_options(max_length=len(ids) + max_new_tokens, do_sample=False)
        generator = og.Generator(self._model, params)
        generator.set_inputs(tensors)
        stream, used = self._tokenizer.create_stream(), chosen if tiled else ""
        return Generation(generator, stream, len(ids), used, tiled, self._end_tokens, max_new_tokens, started)

    def prompt_ids(self, prompt: str, images: Sequence[Tiled]) -> np.ndarray:
        """int32 token ids with every image expanded to rows of placeholders.

        Raises:
            UserError: the prompt brings image placeholders of its own, or the package's template drops images.
        """
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": prompt}]
        message = {"role": "user", "content": content if images else prompt}
        text = self._tokenizer.apply_chat_template(json.dumps([message]), add_generation_prompt=True)
        tokens = self.manifest.tokens
        parts = text.split(tokens.image_text)
        if len(parts) <= len(images):
            cause = f"the package's chat template shows {len(parts) - 1} of {len(images)} images"
            raise UserError("package.template", cause, "build it from a checkpoint whose template renders images")
        if len(parts) > len(images) + 1:
            raise UserError(
                "request.placeholder", f"the prompt itself contains {tokens.image_text}", "remove it from the prompt"
            )
        ids: list[int] = []
        for index, part in enumerate(parts):
            ids += self._tokenizer.encode(part).tolist() if part else []
            if index < len(images):
                ids += ([tokens.image] * images[index].columns + [tokens.row]) * images[index].rows
        return np.array(ids, np.int32)

    def _check_length(self, prompt_tokens: int, max_new_tokens: int) -> None:
        limit = self.manifest.context_length
        if max_new_tokens < 1:
            raise UserError("request.max_new_tokens", f"{max_new_tokens} new tokens are no answer", "ask for 1 or more")
        if prompt_tokens + max_new_tokens > limit:
            raise UserError(
                "request.too_long",
                f"{prompt_tokens} prompt tokens and {max_new_tokens} new ones exceed the context of {limit}",
                "shorten the prompt or lower --max-visual-tokens or --max-new-tokens",
            )
