"""Questions of a tuning: each is asked once for everything that an encoder is given."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from hvlc.evaluation.benchmarks.scores import METRICS
from hvlc.evaluation.task import Example
from hvlc.files.scratch import temporary_directory
from hvlc.inputs.images import to_array
from hvlc.package.tuning import front_with_margin, link_or_copy
from hvlc.results.tuning import Answers, Asked
from hvlc.runtime.generation import VisionLanguageModel
from hvlc.runtime.settings import VisionSettings
from hvlc.runtime.vision import Seen, Vision
from hvlc.workflows.tune.candidates import Candidate

#: Every question is encoded, so that its time is measured.
UNKEPT = VisionSettings(feature_cache=0)


@dataclass(frozen=True)
class _Scale:
    """Scale per side of an image, and the processor seconds that its choice took."""

    scale: float
    seconds: float


class Asking:
    """A package, and a front graph for every margin.

    Args:
        model: the package, opened with `UNKEPT`.
        margins: factors on the compressor's scale, more than one candidate of which may share.
        threads: of every session.
    """

    def __init__(self, model: VisionLanguageModel, margins: Sequence[float], threads: int = 0) -> None:
        self.model = model
        package, manifest = model.directory, model.manifest
        self._stack = ExitStack()
        self._fronts: dict[float, Vision] = {}
        front = manifest.components["front"].file
        for margin in margins:
            place = self._stack.enter_context(temporary_directory("front"))
            for name in manifest.files:  # what the graphs of a front read beside them
                if name.startswith((front, manifest.components["stitch"].file)) and name != front:
                    link_or_copy(package / name, place / name)
            (place / front).write_bytes(front_with_margin(package / front, margin))
            self._fronts[margin] = Vision(place, manifest, threads=threads)

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def ask(self, example: Example, candidates: Sequence[Candidate], max_new_tokens: int) -> Answers:
        """Answers of one question by all candidates.

        Raises:
            UserError: the model cannot be asked.
        """
        scales = {margin: self._scale(example, margin) for margin in {one.margin for one in candidates}}
        seen: dict[Candidate, tuple[object, ...]] = {}
        found: dict[tuple[object, ...], Asked] = {}
        for one in candidates:
            images = self._see(example, one, scales)
            key = (one.encoder, *((image.scale, tuple(image.grid.tolist())) for image in images))
            seen[one] = key
            if key not in found:
                found[key] = self._answered(example, one, scales, max_new_tokens)
        answers = []
        for one in candidates:
            asked = found[seen[one]]
            answers.append(asked.model_copy(update={"seconds": asked.seconds + scales[one.margin].seconds}))
        return Answers(asked=tuple(answers))

    def _scale(self, example: Example, margin: float | None) -> _Scale:
        """The scale that a margin leads to; the question is about one image."""
        if margin is None:
            return _Scale(1.0, 0.0)
        question = self.model.text_ids(example.question)
        started = time.process_time()
        image = self._fronts[margin].see(to_array(example.images[0]), compress=True, question=question)
        chosen = time.process_time() - started
        started = time.process_time()
        self._fronts[margin].see(to_array(example.images[0]), compress=False, scale=image.scale)
        return _Scale(image.scale, max(0.0, chosen - (time.process_time() - started)))

    def _see(self, example: Example, one: Candidate, scales: Mapping[float | None, _Scale]) -> list[Seen]:
        return self.model.see(
            example.question, example.images, vrc=False, max_visual_tokens=one.bound, scale=scales[one.margin].scale
        )

    def _answered(self, example: Example, one: Candidate, scales: Mapping[float | None, _Scale], most: int) -> Asked:
        started = time.process_time()
        generation = self.model.start(
            example.question,
            example.images,
            encoder=one.encoder,
            vrc=False,
            max_visual_tokens=one.bound,
            scale=scales[one.margin].scale,
            max_new_tokens=most,
        )
        tokens: Iterator[str] = iter(generation)
        first = next(tokens, "")
        seconds = time.process_time() - started
        text = first + "".join(tokens)
        score = METRICS[example.metric or "exact_match"](text, example.answers)
        return Asked(score=float(score), tokens=generation.answered.visual_tokens, seconds=seconds)
