"""Answers from a package: prompt, visual tokens, greedy decoding through onnxruntime-genai."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og
from PIL import Image

from hvlc.errors import UserError
from hvlc.graphs.facts import Kind
from hvlc.inputs.images import to_array
from hvlc.inputs.tokenizer import chat_template, opening_tokens
from hvlc.manifest.manifest import POSITION_TABLE, Manifest
from hvlc.manifest.policy import Circumstances
from hvlc.opening.engine import engine_runs
from hvlc.opening.package import open_package
from hvlc.results import Answered
from hvlc.runtime.chunks import PromptChunks, force
from hvlc.runtime.positions import grid_positions, position_table
from hvlc.runtime.providers import open_engine, runs_on
from hvlc.runtime.sampling import Sampling, TokenProbability
from hvlc.runtime.settings import USUAL, VisionSettings
from hvlc.runtime.tiles import TileCount
from hvlc.runtime.turns import Chat, next_turn
from hvlc.runtime.vision import FULL_SIZE, UNSTATED, Seen, Vision

_NO_TILES = TileCount(0, 0, 0)
_TOKENIZER = "package.tokenizer"  # code of the error where its files cannot be read


@dataclass
class Generation:
    """One running answer: iterate for pieces of text, then read `answered`.

    Attributes:
        directory: the package.
        prompt_tokens: length of the prompt, visual tokens included.
        encoder: which vision encoder ran; "" for text only.
        images: the images after the front graph.
        tiles: numbers of their pieces.
        chat: the messages up to the question.
        length: positions of the KV cache.
        in_chunks: whether the decoder has fixed shapes.
        tokens: what was generated so far, the end token included.
        followed: whether another turn has taken the KV cache over, so that nothing more is generated here.
        likeliest: how many of the most probable tokens `probabilities` tell. None: no probabilities are kept.
        probabilities: of each token of the answer's text, where they are kept.
    """

    directory: Path
    generator: og.Generator
    stream: "og.TokenizerStream"
    prompt_tokens: int
    encoder: str
    images: Sequence[Seen]
    tiles: TileCount
    end_tokens: frozenset[int]
    max_new_tokens: int
    started: float
    chat: Chat
    length: int
    in_chunks: bool
    tokens: list[int] = field(default_factory=list)
    text: str = ""
    followed: bool = False
    likeliest: int | None = None
    probabilities: list[TokenProbability] = field(default_factory=list)
    _first: float = 0.0
    _last: float = 0.0

    def __iter__(self) -> Iterator[str]:
        while len(self.tokens) < self.max_new_tokens and (token := self._next()) is not None:
            self._last = time.perf_counter()
            self._first = self._first or self._last
            self.tokens.append(token)
            if token not in self.end_tokens:
                with engine_runs(self.directory, "decode an answer of", _TOKENIZER):
                    piece: str = self.stream.decode(token)
                self.text += piece
                yield piece

    def _next(self) -> int | None:
        """The next token; None where the answer is done.

        No end token comes into the KV cache, so that a chat goes on after the last token of the answer's text.
        """
        if self.followed or self.ended:
            return None
        with engine_runs(self.directory):
            if self.generator.is_done():
                return None
            known = self.in_chunks or self.likeliest is not None
            logits = _last_logits(self.generator) if known else None
            if self.in_chunks and logits is not None:  # nothing ends a search there (`PromptChunks.without_end`)
                best = int(logits.argmax())
                if best in self.end_tokens:
                    return best
            self.generator.generate_next_token()
            token = int(self.generator.get_next_tokens()[0])
        if self.likeliest is not None and logits is not None and token not in self.end_tokens:
            self.probabilities.append(TokenProbability.of(logits, token, self.likeliest))
        return token

    @property
    def ended(self) -> bool:
        """Whether the answer has its end token."""
        return bool(self.tokens) and self.tokens[-1] in self.end_tokens

    def append(self, ids: np.ndarray) -> None:
        """Run int32 ids after the answer; what is generated from here on goes on after them."""
        with engine_runs(self.directory):
            if self.in_chunks:
                for token in ids.tolist():
                    force(self.generator, token)
                return
            if not self.ended:  # an end token was never run; any other that was generated last is, by asking
                self.generator.get_logits()
            self.generator.append_tokens(ids)

    @property
    def answered(self) -> Answered:
        """The record of a finished answer."""
        return Answered(
            text=self.text,
            tokens=tuple(self.tokens),
            encoder=self.encoder,
            scales=tuple(image.scale for image in self.images),
            tiles=self.tiles.total,
            distinct_tiles=self.tiles.distinct,
            encoded_tiles=self.tiles.encoded,
            visual_tokens=sum(image.visual_tokens for image in self.images),
            prompt_tokens=self.prompt_tokens,
            time_to_first_token=max(0.0, self._first - self.started),
            decode_seconds=self._last - self._first,
        )


class LanguageModel:
    """A package that answers text with text, opened and verified.

    Args:
        directory: what `hvlc build` wrote.
        name: label in reports; the directory's name when empty.
        verify: hold every file against its digest first.

    Raises:
        UserError: see `hvlc.opening.package.open_package`; or the package is of another kind, or the runtime refuses
            it.
    """

    kind = Kind.LANGUAGE

    def __init__(self, directory: Path, *, name: str = "", verify: bool = True) -> None:
        package = open_package(directory, verify=verify)
        self.manifest = package.manifest
        if self.manifest.kind is not self.kind:
            cause = f"{directory} is a {self.manifest.kind} package, not a {self.kind} one"
            raise UserError("package.kind", cause, "name a package of that kind; hvlc inspect shows it")
        self.directory = directory
        self.name = name or directory.resolve().name
        self.runs_on = runs_on(self.manifest)
        self._end_tokens = package.configuration.end_tokens
        self._vocabulary = package.configuration.model.vocab_size
        self._windows = PromptChunks.of(package.configuration)
        self._model, self._tokenizer = open_engine(package)

    @property
    def tile_batch(self) -> int:
        """Tiles per encoder run that are asked for; of no meaning without images."""
        return 1

    def answer(
        self, prompt: str, images: Sequence[Image.Image], *, encoder: str, vrc: bool, max_new_tokens: int
    ) -> Answered:
        """Answer greedily; see `start` for the arguments."""
        generation = self.start(prompt, images, encoder=encoder, vrc=vrc, max_new_tokens=max_new_tokens)
        for _ in generation:
            pass
        return generation.answered

    def logits(
        self, prompt: str, images: Sequence[Image.Image], answer: Sequence[int], *, encoder: str, vrc: bool
    ) -> np.ndarray:
        """Logits before each token of a given answer: float32 `[len(answer), vocabulary]`.

        The prompt runs as in `start`; then the tokens go one by one through the KV cache, as an answer's own do.

        Args:
            prompt: as in `start`.
            images: as in `start`.
            answer: ids of at least one token.
            encoder: as in `start`.
            vrc: as in `start`.

        Raises:
            UserError: see `start`.
        """
        if self._windows:
            self._windows.check_answer(answer)
        generation = self.start(prompt, images, encoder=encoder, vrc=vrc, max_new_tokens=len(answer))
        return self.along(generation, answer)

    def text_ids(self, text: str) -> list[int]:
        """Ids of a text alone, without template.

        Raises:
            UserError: the runtime cannot take it.
        """
        return self._tokenizer.encode(text)

    def answer_ids(self, text: str) -> tuple[int, ...]:
        """Ids of an answer that stands alone, and a token that ends it.

        Raises:
            UserError: the runtime cannot take it.
        """
        return (*self._tokenizer.encode(text), min(self._end_tokens))

    def along(self, generation: Generation, answer: Sequence[int]) -> np.ndarray:
        """Logits before each token of an answer that is given to a generation which has generated nothing yet.

        Args:
            generation: of a prompt; nothing more can be done with it.
            answer: ids of at least one token.

        Returns:
            float32 `[len(answer), vocabulary]`.

        Raises:
            UserError: the runtime cannot run the package.
        """
        with engine_runs(self.directory):
            rows = [_last_logits(generation.generator)]
            for token in answer[:-1]:
                if self._windows is None:
                    generation.generator.append_tokens(np.array([token], np.int32))
                else:
                    force(generation.generator, token)
                rows.append(_last_logits(generation.generator))
        return np.stack(rows)

    def start(
        self,
        prompt: str | Chat,
        images: Sequence[Image.Image] = (),
        *,
        encoder: str = "auto",
        vrc: bool = True,
        max_visual_tokens: int | None = None,
        stated: Circumstances = UNSTATED,
        max_new_tokens: int = 128,
        room: int = 0,
        sampling: Sampling | None = None,
        likeliest: int | None = None,
        scale: float = FULL_SIZE,
    ) -> Generation:
        """Run the prefill; the answer streams from the returned generation.

        Args:
            prompt: the question, without template; or a whole chat, whose last message is the user's.
            images: none.
            encoder: "auto" or "": there is none.
            vrc: of no effect without images.
            max_visual_tokens: None.
            stated: nothing.
            max_new_tokens: bound of generated tokens.
            room: positions of the KV cache for later turns (`follow`), as far as the context has them.
            sampling: how tokens are drawn. None: the most probable one each time.
            likeliest: how many of the most probable tokens are told with each token's probability. None: none of this.
            scale: of no effect without images.

        Raises:
            UserError: something about images was asked for, the prompt is empty or too long, or the runtime cannot run
                the package.
        """
        started = time.perf_counter()
        asked = [*(["an image"] if images else []), *(["an encoder"] if encoder not in ("auto", "") else [])]
        asked += ["a bound of visual tokens"] if max_visual_tokens is not None else []
        asked += ["a statement for a policy"] if stated != UNSTATED else []
        if asked:
            cause = f"{self.directory} is a {self.kind} package, and the request has {' and '.join(asked)}"
            raise UserError("request.image", cause, "ask without, or build a vision-language checkpoint")
        chat = self._chat(prompt)
        ids = self.prompt_ids(prompt)
        self._check_prompt(ids, max_new_tokens)
        with engine_runs(self.directory):
            generator = self._generator(length := self._length(len(ids) + max_new_tokens, room), sampling)
            generator.append_tokens(ids)
            stream = self._tokenizer.create_stream()
        return Generation(
            self.directory,
            generator,
            stream,
            prompt_tokens=len(ids),
            encoder="",
            images=(),
            tiles=_NO_TILES,
            end_tokens=self._end_tokens,
            max_new_tokens=max_new_tokens,
            started=started,
            chat=chat,
            length=length,
            in_chunks=self._windows is not None,
            likeliest=likeliest,
        )

    def follow(
        self, generation: Generation, prompt: str, images: Sequence[Image.Image] = (), *, max_new_tokens: int = 128
    ) -> Generation:
        """Ask the next question of a chat; what the KV cache holds of it, images included, is not run again.

        Args:
            generation: the latest answer, which generates nothing more from here on.
            prompt: the question, without template.
            images: none: the runtime takes images with the first prompt.
            max_new_tokens: bound of generated tokens.

        Raises:
            UserError: an image, another answer than the latest, no chat template or one that changes earlier turns, or
                a question that `room` or the context is too small for.
        """
        started = time.perf_counter()
        if images:
            cause = "a later turn of a chat has an image, and onnxruntime-genai takes images with the first prompt"
            raise UserError("request.image", cause, "ask about all images in the first turn, or begin another chat")
        if generation.followed:
            cause = "another question was asked after this answer already"
            raise UserError("request.turn", cause, "ask after the latest answer")
        chat, ids = self._turn(generation.chat, generation.text, prompt)
        self._check_turn(generation, ids, max_new_tokens)
        generation.followed = True
        generation.append(ids)
        return replace(
            generation,
            stream=self._tokenizer.create_stream(),
            prompt_tokens=generation.prompt_tokens + len(generation.tokens) - generation.ended + len(ids),
            max_new_tokens=max_new_tokens,
            started=started,
            chat=chat,
            tokens=[],
            text="",
            followed=False,
            probabilities=[],
            _first=0.0,
            _last=0.0,
        )

    def room_for(self, prompt: str, later: Sequence[str], *, images: int = 0, max_new_tokens: int = 128) -> int:
        """Positions that later turns of a chat take at most.

        Args:
            prompt: the first question.
            later: the questions after it.
            images: of the first question.
            max_new_tokens: bound of each answer.

        Raises:
            UserError: the package has no chat template, or one that changes earlier turns.
        """
        chat, total = self._chat(prompt, images), 0
        for question in later:
            chat, ids = self._turn(chat, "", question)
            total += len(ids) + max_new_tokens
        return total

    def _chat(self, prompt: str | Chat, images: int = 0) -> Chat:
        """Messages of a first question, or those that are given.

        Raises:
            UserError: given are several, and the package has no chat template; or they show other than all images.
        """
        if not isinstance(prompt, str):
            return self._checked(tuple(prompt), images)
        content = [{"type": "image"}] * images + [{"type": "text", "text": prompt}]
        return ({"role": "user", "content": content if images else prompt},)

    def _checked(self, chat: Chat, images: int) -> Chat:
        parts = [part for message in chat if not isinstance(message["content"], str) for part in message["content"]]
        shown = sum(part["type"] == "image" for part in parts)
        if shown != images:
            raise UserError("request.image", f"the chat shows {shown} images, and {images} are given", "give them all")
        if not chat_template(self.directory, _TOKENIZER) and (len(chat) > 1 or parts):
            cause = f"{self.directory} has no chat template, so it goes on with a text and knows no turns"
            raise UserError("package.turns", cause, "give all of the text as one prompt")
        return chat

    def _turn(self, chat: Chat, answer: str, prompt: str) -> tuple[Chat, np.ndarray]:
        """A chat with one more turn, and int32 ids from the end of the answer to where the next one begins.

        Raises:
            UserError: see `follow`.
        """
        if not chat_template(self.directory, _TOKENIZER):
            cause = f"{self.directory} has no chat template, so it goes on with a text and knows no turns"
            raise UserError("package.turns", cause, "give all of the text as one prompt")
        longer, text = next_turn(self._tokenizer, chat, answer, prompt)
        encoded = self._tokenizer.encode(text)
        self._check_later(text, encoded)
        ids = self._known(encoded)
        if self._windows:
            self._windows.check(ids)
        return longer, ids

    def _check_later(self, text: str, ids: Sequence[int]) -> None:
        """Refuse what only a first prompt may have; a model of texts has nothing of the kind."""

    def _check_turn(self, generation: Generation, ids: np.ndarray, max_new_tokens: int) -> None:
        """Refuse a turn that does not fit into what is left of the KV cache."""
        _check_new(max_new_tokens)
        used = generation.generator.token_count()
        if used + len(ids) + max_new_tokens <= generation.length:
            return
        limit = self.manifest.context_length
        whole = limit is not None and generation.length >= limit
        bound = f"the {'context' if whole else 'room of this chat'}, {generation.length}"
        cause = f"{used} tokens of the chat, {len(ids)} of the question and {max_new_tokens} new ones exceed {bound}"
        fix = "begin another chat or ask for fewer new tokens" if whole else "begin a chat with more room"
        raise UserError("request.too_long", cause, fix)

    def _length(self, tokens: int, room: int) -> int:
        """Positions of a KV cache for this many tokens and some room, within the context."""
        if self._windows:
            return self._windows.context
        limit = self.manifest.context_length
        wanted = tokens + max(0, room)
        return wanted if limit is None else min(wanted, limit)

    def prompt_ids(self, prompt: str | Chat, images: Sequence[Seen] = ()) -> np.ndarray:
        """int32 token ids: through the package's chat template, or as plain text to go on with if it has none.

        Raises:
            UserError: there is nothing to go on with, or the template cannot be rendered.
        """
        chat = self._chat(prompt)
        if chat_template(self.directory, _TOKENIZER):
            ids = self._tokenizer.encode(self._tokenizer.rendered(chat))
        else:
            ids = opening_tokens(self.directory, _TOKENIZER) + self._tokenizer.encode(chat[0]["content"])
        if not ids:
            raise UserError("request.empty", "the prompt has no token to go on with", "give a prompt")
        return self._known(ids)

    def _known(self, ids: Sequence[int]) -> np.ndarray:
        """int32 ids that the model has rows for.

        Raises:
            UserError: there are others.
        """
        beyond = sorted({token for token in ids if not 0 <= token < self._vocabulary})
        if beyond:
            cause = f"the prompt has token {beyond[0]}, and the package's table has {self._vocabulary} rows"
            raise UserError(_TOKENIZER, cause, "correct the checkpoint's tokenizer files and build again")
        return np.array(ids, np.int32)

    def spelled(self, token: int) -> str:
        """Text of a token alone, which may be half a character."""
        with engine_runs(self.directory, "decode a token of", _TOKENIZER):
            text: str = self._tokenizer.create_stream().decode(token)
        return text

    def _generator(self, max_length: int, sampling: Sampling | None = None) -> og.Generator:
        if sampling is not None and self._windows is not None:
            cause = f"{self.directory} has a decoder of fixed shapes, whose answers hvlc does not draw"
            raise UserError("request.sampling", cause, "ask with temperature 0")
        params = og.GeneratorParams(self._model)
        drawn = {"do_sample": False} if sampling is None else sampling.options
        params.set_search_options(max_length=max_length, **drawn)
        return og.Generator(self._model, params)

    def _check_prompt(self, ids: np.ndarray, max_new_tokens: int) -> None:
        prompt_tokens, padded = len(ids), ""
        if self._windows:
            self._windows.check(ids)
            prompt_tokens, padded = self._windows.padded(prompt_tokens), f" (in windows of {self._windows.size})"
        limit = self.manifest.context_length
        _check_new(max_new_tokens)
        if limit is not None and prompt_tokens + max_new_tokens > limit:
            raise UserError(
                "request.too_long",
                f"{prompt_tokens} prompt tokens{padded} and {max_new_tokens} new ones exceed the context of {limit}",
                "shorten the prompt or lower --max-visual-tokens or --max-new-tokens",
            )


class VisionLanguageModel(LanguageModel):
    """A package that answers about images, opened and verified.

    Args:
        directory: what `hvlc build` wrote.
        name: label in reports; the directory's name when empty.
        verify: hold every file against its digest first.
        vision: how encoders run.
        threads: threads of the vision sessions; 0 lets onnxruntime choose.

    Raises:
        UserError: no package, one of another kind, or a file was changed.
    """

    kind = Kind.VISION_LANGUAGE

    def __init__(
        self,
        directory: Path,
        *,
        name: str = "",
        verify: bool = True,
        vision: VisionSettings = USUAL,
        threads: int = 0,
    ) -> None:
        super().__init__(directory, name=name, verify=verify)
        self._vision = Vision(directory, self.manifest, vision, threads)

    @property
    def tile_batch(self) -> int:
        """Tiles per encoder run that are asked for."""
        return self._vision.tile_batch

    def start(
        self,
        prompt: str | Chat,
        images: Sequence[Image.Image] = (),
        *,
        encoder: str = "auto",
        vrc: bool = True,
        max_visual_tokens: int | None = None,
        stated: Circumstances = UNSTATED,
        max_new_tokens: int = 128,
        room: int = 0,
        sampling: Sampling | None = None,
        likeliest: int | None = None,
        scale: float = FULL_SIZE,
    ) -> Generation:
        """Run vision and prefill; the answer streams from the returned generation.

        Args:
            prompt: the question, without template or placeholders; or a whole chat, whose last message is the user's.
            images: RGB images in the order they are shown.
            encoder: an encoder's name, or "auto" for the package's policy.
            vrc: whether the resolution compressor chooses each image's scale.
            max_visual_tokens: bound per image; the package's when None.
            stated: task, device and latency, for the package's policy.
            max_new_tokens: bound of generated tokens.
            room: positions of the KV cache for later turns (`follow`), as far as the context has them.
            sampling: how tokens are drawn. None: the most probable one each time.
            likeliest: how many of the most probable tokens are told with each token's probability. None: none of this.
            scale: scale per side of every image, where the resolution compressor does not choose it.

        Raises:
            UserError: unknown encoder, a prompt with image placeholders of its own, or one that is too long.
        """
        started = time.perf_counter()
        seen = self.see(prompt, images, vrc=vrc, max_visual_tokens=max_visual_tokens, scale=scale)
        visual_tokens = sum(s.visual_tokens for s in seen)
        chosen = self._vision.choose(encoder, seen, stated)
        chat = self._chat(prompt, len(seen))
        ids = self.prompt_ids(prompt, seen)
        self._check_prompt(ids, max_new_tokens)
        tensors = og.NamedTensors()
        tensors["input_ids"] = ids[None]
        tensors["num_image_tokens"] = np.array([visual_tokens], np.int64)
        for name, given in self._positions(ids, seen).items():
            tensors[name] = given
        encoded = self._vision.encode(seen, chosen)
        if seen:
            tensors["host_image_features"] = np.concatenate(encoded.features)
        with engine_runs(self.directory):
            generator = self._generator(length := self._length(len(ids) + max_new_tokens, room), sampling)
            generator.set_inputs(tensors)
            stream = self._tokenizer.create_stream()
        return Generation(
            self.directory,
            generator,
            stream,
            prompt_tokens=len(ids),
            encoder=chosen if seen else "",
            images=seen,
            tiles=encoded.tiles,
            end_tokens=self._end_tokens,
            max_new_tokens=max_new_tokens,
            started=started,
            chat=chat,
            length=length,
            in_chunks=self._windows is not None,
            likeliest=likeliest,
        )

    def see(
        self,
        prompt: str | Chat,
        images: Sequence[Image.Image],
        *,
        vrc: bool = True,
        max_visual_tokens: int | None = None,
        scale: float = FULL_SIZE,
    ) -> list[Seen]:
        """Images of a question after the front graph; see `start` for the arguments.

        Raises:
            UserError: see `Vision.see`.
        """
        asked: dict[str, Any] = {"compress": vrc, "max_visual_tokens": max_visual_tokens, "scale": scale}
        question = self._question(prompt) if vrc else ()
        return [self._vision.see(to_array(image), question=question, **asked) for image in images]

    def seen_at(self, image: np.ndarray, scale: float) -> Seen:
        """Pixels that the encoder would be given of an image, uint8 `[height, width, 3]`, at a scale per side.

        Raises:
            UserError: see `Vision.see`.
        """
        return self._vision.see(image, compress=False, scale=scale)

    def _question(self, prompt: str | Chat) -> list[int]:
        """Tokens of the user's last message alone, where the resolution compressor reads them."""
        if self._vision.images.question_tokens is None:
            return []
        content: Any = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        texts = [content] if isinstance(content, str) else [p["text"] for p in content if p["type"] == "text"]
        return self._tokenizer.encode(" ".join(texts)) if texts else []

    def _positions(self, ids: np.ndarray, images: Sequence[Seen]) -> dict[str, np.ndarray]:
        """Inputs of the runtime, or of the graphs of a decoder of fixed shapes, for positions in grids."""
        if not self._vision.images.grid_positions:
            return {}
        if self._windows is None:
            return {"image_grid_thw": np.array([[1, *image.grid] for image in images], np.int64)} if images else {}
        found = grid_positions(ids, self._vision.images.token, [image.grid for image in images])
        return {POSITION_TABLE: position_table(found, self._windows.context)}

    def prompt_ids(self, prompt: str | Chat, images: Sequence[Seen] = ()) -> np.ndarray:
        """int32 token ids with everything that stands for an image in the place of its placeholder.

        Raises:
            UserError: the prompt brings image placeholders of its own, or the package's template drops images.
        """
        text = self._tokenizer.rendered(self._chat(prompt, len(images)))
        rule = self._vision.images
        parts = text.split(rule.placeholder)
        if len(parts) <= len(images):
            cause = f"the package's chat template shows {len(parts) - 1} of {len(images)} images"
            raise UserError("package.template", cause, "build it from a checkpoint whose template renders images")
        if len(parts) > len(images) + 1:
            raise self._has_placeholder()
        ids: list[int] = []
        for index, part in enumerate(parts):
            text = (rule.after if index else "") + part + (rule.before if index < len(images) else "")
            encoded = self._tokenizer.encode(text) if text else []
            self._check_own(encoded)
            ids += encoded
            ids += images[index].ids.tolist() if index < len(images) else []
        return self._known(ids)

    def _check_later(self, text: str, ids: Sequence[int]) -> None:
        """Refuse a later turn with an image placeholder: no visual tokens come with it."""
        if self._vision.images.placeholder in text:
            raise self._has_placeholder()
        self._check_own(ids)

    def _check_own(self, ids: Sequence[int]) -> None:
        """Refuse a text with the token of a visual token, which some families spell otherwise than an image."""
        token = self._vision.images.token
        if token in ids:
            cause = f"the prompt itself contains token {token}, which stands for a visual token"
            raise UserError("request.placeholder", cause, "remove it from the prompt")

    def _has_placeholder(self) -> UserError:
        cause = f"the prompt itself contains {self._vision.images.placeholder}"
        return UserError("request.placeholder", cause, "remove it from the prompt")


def _check_new(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        cause = f"max_new_tokens must be at least 1, got {max_new_tokens}"
        raise UserError("request.max_new_tokens", cause, "ask for 1 or more")


def _last_logits(generator: og.Generator) -> np.ndarray:
    """float32 `[vocabulary]`: what the model expects next."""
    return np.array(generator.get_logits(), np.float32).reshape(-1)


def open_model(directory: Path, *, name: str = "", vision: VisionSettings = USUAL) -> LanguageModel:
    """The model of a package that answers.

    Args:
        directory: what `hvlc build` wrote.
        name: label in reports; the directory's name when empty.
        vision: how encoders run, where there are any.

    Raises:
        UserError: no package, a vision package, or a file was changed.
    """
    kind = Manifest.load(directory).kind  # each opens it, and looks at all of it
    if kind is Kind.VISION:
        cause = f"{directory} is a vision package: it turns pixels into features and answers nothing"
        raise UserError(
            "package.kind", cause, "run its vision.onnx with onnxruntime (hvlc inspect shows what it takes)"
        )
    if kind is Kind.LANGUAGE:
        return LanguageModel(directory, name=name)
    return VisionLanguageModel(directory, name=name, vision=vision)
