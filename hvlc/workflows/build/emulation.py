"""Inputs of compiled components in emulation: those of a request, from the package's own graphs.

A page with a question goes through the package on the CPU, stage by stage, as onnxruntime-genai would run it; on the
way the inputs of every stage are kept. Emulation is slow, so little is kept: it shows whether a graph computes what it
should, not how good the answers are.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime import NodeArg
from PIL import Image

from hvlc.graphs.builder import LAST_INDEX, MOST_TOKENS
from hvlc.graphs.facts import Kind, encoder_component
from hvlc.graphs.states import PAST, PRESENT
from hvlc.inputs.images import to_array
from hvlc.manifest.manifest import POSITION_TABLE, Manifest
from hvlc.opening.package import open_package
from hvlc.opening.sessions import PackageSession, session_options
from hvlc.qnn.checking import Sample
from hvlc.runtime.fixed import DTYPES
from hvlc.runtime.generation import LanguageModel, VisionLanguageModel
from hvlc.runtime.positions import grid_positions, position_table
from hvlc.runtime.vision import Seen, Vision
from hvlc.zoo.documents import examples

#: Documents that no training of weights and no evaluation saw.
_SPLIT = "calibration"


@dataclass(frozen=True)
class Amount:
    """Amount that is run of one page.

    Attributes:
        tiles: for each encoder.
        windows: of the prompt, from its start.
        tokens: of the answer.
    """

    tiles: int = 2
    windows: int = 2
    tokens: int = 3

    def describe(self) -> str:
        """Description of the inputs in words."""
        return (
            f"a drawn page with a question, its first {self.tiles} tiles, {self.windows} windows of the prompt and "
            f"{self.tokens} tokens of the answer"
        )


def component_samples(directory: Path, manifest: Manifest, amount: Amount) -> dict[str, list[Sample]]:
    """Inputs for every component that one page of the built-in documents reaches, by the component's name.

    Args:
        directory: a package that onnxruntime can run on the CPU.
        manifest: of it.
        amount: how much.

    Raises:
        UserError: the package says what this version does not write, or a graph cannot be run.
    """
    if manifest.kind is Kind.VISION:
        size = manifest.preprocessing.image_size if manifest.preprocessing else 0
        pixels = np.random.default_rng(0).standard_normal((1, 3, size, size)).astype(np.float32)
        return {"vision": [Sample({"pixel_values": pixels})]}
    document, question = next(examples(_SPLIT, 1))
    samples: dict[str, list[Sample]] = defaultdict(list)
    images: list[Seen] = []
    features = None
    if manifest.kind is Kind.VISION_LANGUAGE:
        vision = Vision(directory, manifest)
        images = [vision.see(to_array(document.image), compress=False)]
        for name, tiles in _pieces(manifest, vision, document.image, images[0]):
            samples[name] = [Sample({"pixel_values": tile[None]}) for tile in tiles[: amount.tiles]]
        features = np.concatenate(vision.encode(images, vision.choose("auto", ())).features)
    if manifest.is_staged:
        ids = _prompt(directory, question.text, images)
        config = open_package(directory).configuration.model
        table = None
        if manifest.images is not None and manifest.images.grid_positions:
            positions = grid_positions(ids, manifest.images.token, [image.grid for image in images])
            table = position_table(positions, config.context_length)
        _Stages(directory, config.model_dump(mode="json"), table).run(ids, features, amount, samples)
    return dict(samples)


def _pieces(manifest: Manifest, vision: Vision, image: Image.Image, seen: Seen) -> Iterator[tuple[str, np.ndarray]]:
    """Pieces of a page for each encoder; where a graph takes one grid, of the page as large as that."""
    grids = manifest.images.grids if manifest.images else ()
    for encoder in manifest.encoders:
        if not grids:
            yield f"vision_{encoder}", seen.pieces
        for height, width in grids:
            page = vision.see(to_array(image.resize((width, height))), compress=False)
            yield encoder_component(f"vision_{encoder}", height, width), page.pieces


def _prompt(directory: Path, question: str, images: Sequence[Seen]) -> np.ndarray:
    opened = VisionLanguageModel if images else LanguageModel
    return opened(directory, verify=False).prompt_ids(question, images)


class _Stages:
    """The stages of a decoder of fixed shapes on the CPU."""

    def __init__(self, directory: Path, config: Mapping[str, Any], positions: np.ndarray | None) -> None:
        self._directory = directory
        self._config, self._positions = config, positions
        self._stages: dict[str, Any] = config["decoder"]["pipeline"][0]
        self._sessions: dict[str, PackageSession] = {}
        self._cache: dict[str, np.ndarray] = {}

    def run(
        self, ids: np.ndarray, features: np.ndarray | None, amount: Amount, samples: dict[str, list[Sample]]
    ) -> None:
        """Run a prompt and some tokens after it; the inputs of every stage go into `samples`."""
        size = self._config["decoder"]["sliding_window"]["window_size"]
        windows = np.pad(ids, (0, -len(ids) % size), constant_values=self._config["pad_token_id"]).reshape(-1, size)
        logits = np.zeros((1, 1, 1), np.float32)
        used = 0
        room = self._config["context_length"] // size
        for number, window in enumerate(windows[: min(amount.windows, room)]):
            in_window = int((ids[: number * size] == self._config.get("image_token_id")).sum())
            rows = None if features is None else features[in_window:]
            logits = self._window(window, rows, used, "run_on_prompt", samples)
            used += size
        last = min(len(ids), used) - 1
        token = int(logits[0, last % logits.shape[1]].argmax())  # of a chunk, or of its last token alone
        used = last + 1  # an answer's first token takes the place of the padding
        for _ in range(min(amount.tokens, self._config["context_length"] - used)):
            logits = self._window(np.array([token]), None, used, "run_on_token_gen", samples)
            used += 1
            token = int(logits[0, -1].argmax())

    def _window(
        self, ids: np.ndarray, features: np.ndarray | None, used: int, when: str, samples: dict[str, list[Sample]]
    ) -> np.ndarray:
        """float32 `[1, len(ids), vocabulary]`: what the stages make of ids that follow `used` positions."""
        total = used + len(ids)
        values: dict[str, np.ndarray] = {
            "input_ids": ids[None].astype(np.int32),
            LAST_INDEX: np.array([[total - 1]], np.int32),
            **({} if self._positions is None else {POSITION_TABLE: self._positions}),
            MOST_TOKENS: np.array([self._config["context_length"]], np.int32),
        }
        for name, stage in ((name, stage) for name, stage in self._stages.items() if stage[when]):
            session = self._session(name, stage["filename"])
            feeds = {i.name: self._feed(i, values) for i in session.get_inputs()}
            filled = (slice(None), slice(None), slice(0, total))
            caches = {o.name: filled for o in session.get_outputs() if o.name.startswith(PRESENT)}
            samples[name].append(Sample(feeds, caches))
            outputs = dict(zip(stage["outputs"], session.run(stage["outputs"], feeds), strict=True))
            if "inputs_embeds" in outputs and features is not None:
                places = np.flatnonzero(ids == self._config["image_token_id"])
                outputs["inputs_embeds"][0, places] = features[: len(places)]
            self._cache |= {name: value for name, value in outputs.items() if name in caches}
            values |= outputs
        return values["logits"]

    def _feed(self, wanted: NodeArg, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """An input by its name; a cache that nothing has filled yet is zeros."""
        present = wanted.name.replace(PAST, PRESENT)
        if present == wanted.name:
            return values[wanted.name]
        return self._cache.get(present, np.zeros(wanted.shape, DTYPES[wanted.type]))

    def _session(self, name: str, file: str) -> PackageSession:
        if name not in self._sessions:
            path = self._directory / file
            self._sessions[name] = PackageSession(file, path, session_options(), ["CPUExecutionProvider"])
        return self._sessions[name]
