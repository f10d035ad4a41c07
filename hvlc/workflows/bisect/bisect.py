"""Bisection of a package against its reference: every stage on the reference's inputs, and on its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Protocol

import numpy as np

from hvlc.errors import Progress, UserError
from hvlc.evaluation.deviation import centered_logits, deviation, mismatches
from hvlc.files.digests import digest_file
from hvlc.files.reading import is_file
from hvlc.inputs.documents import read_json
from hvlc.inputs.images import load_images, to_array
from hvlc.manifest.manifest import MANIFEST, Manifest
from hvlc.opening.engine import EngineError
from hvlc.opening.sessions import SessionError
from hvlc.results import trace_points
from hvlc.results.bisection import Bisection, Deviation, StageResult
from hvlc.results.trace_points import Layout, Question, Values
from hvlc.tracing.package import PackageTracer
from hvlc.tracing.package_stages import Stage
from hvlc.tracing.parts import Precision
from hvlc.weights.hub import located
from hvlc.workflows.bisect.diagnosis import diagnose
from hvlc.workflows.bisect.opening import open_tracer
from hvlc.workflows.build.requirements import require_compile

#: Relative errors that computing with so many bits may make (measured: docs/bisect.md). Float: sums in another order,
#: and constants in float16.
_FLOAT, _TOLERANCES = 1e-3, {16: 5e-3, 8: 0.05, 4: 0.4}
_PEERS, _UNLIKE_PEERS = 4, 3.0  # quantized layers of one kind have errors of one size: docs/bisect.md
_LISTED = 3  # values in an error
_NEAR_TIE = 0.05  # of the spread of logits, between which an engine may choose as it rounds


class Tracer(Protocol):
    """Something that takes traces of a model."""

    name: str
    runs_on: str

    @property
    def layout(self) -> Layout:
        """Its widths and numbers of layers."""

    def trace(self, question: Question) -> Values:
        """The values of all stages of a resolved question."""


@dataclass(frozen=True)
class Request:
    """Models that are compared, and how.

    Attributes:
        package: directory.
        reference: directory of a checkpoint or package.
        prompt: the question, without template.
        images: files.
        encoder: name of the vision encoder, or "auto".
        vrc: whether the resolution compressor chooses each image's scale.
        max_new_tokens: bound of the answer.
        tolerance: of relative errors in place of those that follow from a stage's precision.
        threads: of onnxruntime; 0 lets it choose.
    """

    package: Path
    reference: Path
    prompt: str
    images: tuple[Path, ...] = ()
    encoder: str = "auto"
    vrc: bool = True
    max_new_tokens: int = 16
    tolerance: float | None = None
    threads: int = 0


def bisect(request: Request, progress: Progress = lambda *_: None) -> Bisection:
    """Compare a package with its reference, stage by stage.

    Raises:
        UserError: one of the two is not what it should be, they are models of different shapes, or the question cannot
            be asked.
    """
    images = tuple(to_array(image) for image in load_images(request.images))
    tracer = open_tracer(request.package, request.threads)
    request = replace(request, reference=located(request.reference))
    reference = open_reference(request.reference, tracer.manifest, request.threads)
    differences = list(tracer.layout.differences(reference.layout))
    if differences:
        cause = f"{tracer.name} and {reference.name} are models of different shapes: {'; '.join(differences)}"
        raise UserError("bisect.shape", cause, "name the checkpoint that the package was built from")
    question = tracer.resolved(Question(request.prompt, images, request.encoder, request.vrc, request.max_new_tokens))
    _require_values(tracer, reference, question)
    answer, failure = _answer(tracer, question)
    progress("reference", 0, 1)
    expected = reference.trace(question)
    found = _Comparison(tracer, question, expected, request.tolerance)
    found.run(progress)
    found.sampling(answer, failure)
    results = found.results()
    first = next((r.name for r in results if r.departs), None)
    return Bisection(
        package=tracer.name,
        built_from=tracer.manifest.sources.checkpoint,
        package_runs_on=tracer.runs_on,
        changed_files=changed_files(request.package, tracer.manifest),
        reference=reference.name,
        reference_runs_on=reference.runs_on,
        prompt=request.prompt,
        images=tuple(path.name for path in request.images),
        encoder=question.encoder,
        vrc=request.vrc,
        positions=len(expected[trace_points.TOKENIZATION]),
        answer=tuple(int(t) for t in answer),
        expected_answer=tuple(int(t) for t in expected[trace_points.ANSWER]),
        stages=results,
        departs=first,
        hints=diagnose(first, found.parts, found.outputs, expected, tracer, request.reference) if first else (),
        notes=_notes(tracer),
    )


def open_reference(directory: Path, manifest: Manifest, threads: int = 0) -> Tracer:
    """A checkpoint or a package that takes the same questions as a package.

    Args:
        directory: of the reference.
        manifest: of the package.
        threads: of onnxruntime; 0 lets it choose.

    Raises:
        UserError: it is neither, or one of another architecture.
    """
    if is_file(directory / MANIFEST):
        found = open_tracer(directory, threads)
        _check_type(directory, found.manifest.sources.model_type, manifest)
        return found
    config = directory / "config.json"
    if not is_file(config):
        cause = f"{directory} is neither a package nor a checkpoint directory"
        raise UserError("bisect.reference", cause, "name one of the two")
    content = read_json(config, "checkpoint.config")
    _check_type(directory, str(content.get("model_type")) if isinstance(content, dict) else "", manifest)
    require_compile("a checkpoint's trace")
    from hvlc.export.references import checkpoint_tracer

    return checkpoint_tracer(directory)


def _require_values(tracer: PackageTracer, reference: Tracer, question: Question) -> None:
    """Refuse a reference whose compiled graphs hide values that the package is compared at.

    Raises:
        UserError: there are such values.
    """
    if not isinstance(reference, PackageTracer) or not reference.is_compiled:
        return
    wanted, shown = ({stage.name for stage in one.stages(question)} for one in (tracer, reference))
    if wanted - shown:
        cause = f"{reference.name} is compiled and does not show {', '.join(sorted(wanted - shown)[:_LISTED])}"
        fix = "name its checkpoint or the package that was built with --no-aot, or ask the other way round"
        raise UserError("bisect.compiled", cause, fix)


def _check_type(directory: Path, model_type: str, manifest: Manifest) -> None:
    if model_type != manifest.sources.model_type:
        cause = f"{directory} is of model_type {model_type!r}, the package of {manifest.sources.model_type!r}"
        raise UserError("bisect.reference", cause, "name the checkpoint that the package was built from")


def changed_files(directory: Path, manifest: Manifest) -> tuple[str, ...]:
    """Files of a package that are missing or not as they were built."""
    paths = {name: directory / name for name in manifest.files}
    return tuple(
        name for name, path in paths.items() if not is_file(path) or digest_file(path) != manifest.files[name].sha256
    )


def _answer(tracer: PackageTracer, question: Question) -> tuple[np.ndarray, str]:
    """The package's greedy answer, or none and why it gives none."""
    try:
        return tracer.answer(question), ""
    except (EngineError, SessionError) as error:
        return np.zeros(0, np.int64), error.cause


def _notes(tracer: PackageTracer) -> tuple[str, ...]:
    rotated = "the residual stream of the package is rotated; its values were rotated back before they were compared"
    whole = (
        "compiled graphs cannot be cut: each is one stage, named after its component, and its weights cannot be read; "
        "bisect the package that was built with --no-aot to see single layers"
    )
    return (*([rotated] if tracer.rotated else []), *([whole] if tracer.is_compiled else []))


class _Comparison:
    """Stage after stage, on the reference's values and on the package's own.

    Attributes:
        outputs: of each stage on the reference's values.
        parts: the stages by label.
    """

    def __init__(self, tracer: PackageTracer, question: Question, expected: Values, tolerance: float | None) -> None:
        self.outputs: dict[str, np.ndarray] = {}
        self.parts = {stage.label: stage for stage in tracer.stages(question)}
        self._tracer, self._question, self._expected = tracer, question, expected
        self._asked = tolerance
        self._chain: dict[str, np.ndarray] = {trace_points.SAMPLING: expected[trace_points.SAMPLING]}
        self._broken = False
        self._results: list[StageResult] = []
        self._stepwise: list[tuple[str, Deviation, Precision]] = []

    def run(self, progress: Progress) -> None:
        """Every stage but the sampling."""
        for index, stage in enumerate(self.parts.values()):
            progress(stage.label, index, len(self.parts))
            self._compare(stage)
        if self._stepwise:
            self._decode()

    def _compare(self, stage: Stage) -> None:
        expected, detail = self._expected[stage.name], stage.detail
        before = self._expected[stage.before] if stage.before else None
        try:
            with stage.opened() as run:
                self.outputs |= (made := run(self._expected))
                own = self._deviation(stage.name, made[stage.name], expected, before)
                if stage.steps and self._steps and own.relative is not None:
                    stepped = run(self._expected, stepwise=True)[stage.name]
                    self._stepwise.append((stage.label, self._stepping(stage, stepped, made), stage.precision))
                self._go_on(run)
        except SessionError as error:
            self._broken = True
            own, detail = Deviation(shape=(), expected_shape=expected.shape), error.cause
        accumulated = None
        if stage.name in self._chain:
            accumulated = self._deviation(stage.name, self._chain[stage.name], expected)
        self._add(stage.label, own, accumulated, stage.precision, detail)

    def _stepping(self, stage: Stage, stepped: np.ndarray, made: Mapping[str, np.ndarray]) -> Deviation:
        """One token after another, from all positions at once."""
        if stage.name == trace_points.HEAD:
            return deviation(centered_logits(stepped), centered_logits(made[stage.name]))
        return deviation(stepped, made[stage.name], self._expected[stage.before])

    @property
    def _steps(self) -> int:
        """Tokens of the answer that are read again."""
        return max(0, len(self._expected[trace_points.SAMPLING]) - 1)

    def _go_on(self, run: Callable[..., Mapping[str, np.ndarray]]) -> None:
        """The stage on the package's own values, as far as it gets with them."""
        if self._broken:
            return
        try:
            self._chain |= run(self._chain, stepwise=True)
        except SessionError:
            self._broken = True

    def _deviation(
        self, name: str, found: np.ndarray, expected: np.ndarray, before: np.ndarray | None = None
    ) -> Deviation:
        if name == trace_points.TOKENIZATION:
            return mismatches(found, expected)
        if name in (trace_points.RESOLUTION, trace_points.PREPROCESSING) or found.shape != expected.shape:
            return deviation(found, expected, whole=True)
        if name == trace_points.HEAD:
            places = trace_points.head_start(self._expected) + np.arange(len(expected))
            return _placed(deviation(centered_logits(found), centered_logits(expected)), places)
        images = self._tracer.manifest.images
        if name == trace_points.EMBEDDING and images is not None:  # at the placeholders of images rows have no meaning
            rows = np.flatnonzero(trace_points.read_ids(self._expected) != images.token)
            return _placed(deviation(found[rows], expected[rows]), rows)
        return deviation(found, expected, before)

    def _decode(self) -> None:
        """Tokens one after another against all at once, by the layer in which that differs most."""
        name, own, precision = max(self._stepwise, key=lambda found: _size(found[1]))
        accumulated = None
        if trace_points.HEAD in self._chain:
            pair = (values[trace_points.HEAD][-self._steps :] for values in (self._chain, self._expected))
            accumulated = deviation(*(centered_logits(logits) for logits in pair))
        cached = Precision(activations=precision.activations, cache=precision.cache)
        self._add(trace_points.DECODE, own, accumulated, cached, f"most in {name}")

    def sampling(self, answer: np.ndarray, failure: str) -> None:
        """The engine's tokens against those that the package's own logits ask for, and against the reference's."""
        expected, read = self._expected[trace_points.ANSWER], self._expected[trace_points.SAMPLING]
        if failure or trace_points.HEAD not in self._chain:
            own = Deviation(shape=(), expected_shape=expected.shape)
            self._add(trace_points.SAMPLING, own, None, Precision(), failure or "the package does not get that far")
            return
        logits = self._chain[trace_points.HEAD]
        logits = logits[len(logits) - len(read) :]
        own, detail = choice(answer, expected, logits)
        self._add(trace_points.SAMPLING, own, mismatches(*_common(answer, expected)), Precision(), detail)

    def _add(self, name: str, own: Deviation, accumulated: Deviation | None, precision: Precision, detail: str) -> None:
        exact = {trace_points.TOKENIZATION: 0.0, trace_points.SAMPLING: _NEAR_TIE}
        tolerance = exact.get(name, self._asked)
        tolerance = _tolerance(precision) if tolerance is None else tolerance
        words = _words(precision)
        self._results.append(
            StageResult(
                name=name, own=own, accumulated=accumulated, tolerance=tolerance, precision=words, detail=detail
            )
        )

    def results(self) -> tuple[StageResult, ...]:
        """All stages; quantized layers are also held against those of their kind."""
        if self._asked is not None:
            return tuple(self._results)
        return tuple(among_peers(self._results))


def _size(found: Deviation) -> float:
    return np.inf if found.relative is None else found.relative


def _placed(found: Deviation, rows: np.ndarray) -> Deviation:
    """A deviation of some rows, with its place among all positions."""
    place = found.place and (int(rows[found.place[0]]), *found.place[1:])
    return found.model_copy(update={"place": place})


def _tolerance(precision: Precision) -> float:
    """Relative error allowed to a stage of this precision; sources of error add up."""
    bits = (precision.weights, precision.activations, precision.cache)
    return sum(_TOLERANCES[b] for b in bits if b in _TOLERANCES) or _FLOAT


def _words(precision: Precision) -> str:
    parts = {"weights": precision.weights, "activations": precision.activations, "cache": precision.cache}
    return ", ".join(f"{bits}-bit {name}" for name, bits in parts.items() if bits in _TOLERANCES) or "float"


def among_peers(results: Sequence[StageResult]) -> list[StageResult]:
    """Tolerances of quantized layers, tightened to a few times what is usual among layers of their kind."""
    kinds: dict[tuple[str, str], list[float]] = {}
    for result in results:
        if result.own.relative is not None and _kind(result)[1] != "float" and result.name.rpartition(".")[2].isdigit():
            kinds.setdefault(_kind(result), []).append(result.own.relative)
    usual = {kind: _UNLIKE_PEERS * median(errors) for kind, errors in kinds.items() if len(errors) >= _PEERS}
    return [
        result.model_copy(
            update={"tolerance": float(np.clip(usual[_kind(result)], result.tolerance / 4, result.tolerance))}
        )
        if _kind(result) in usual
        else result
        for result in results
    ]


def _kind(result: StageResult) -> tuple[str, str]:
    return result.name.rpartition(".")[0], result.precision


def _common(answer: np.ndarray, expected: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as far as both go; an answer that ended early keeps its end."""
    both = min(len(answer), len(expected))
    return answer[:both], expected[:both]


def choice(answer: np.ndarray, expected: np.ndarray, logits: np.ndarray) -> tuple[Deviation, str]:
    """Whether an engine chose what the logits ask for, as far as it had read what the logits had.

    Args:
        answer: int64 `[n]`, the engine's tokens.
        expected: int64 `[m]`, the reference's.
        logits: float `[k, vocabulary]`, of the first ones, with the reference's before them.

    Returns:
        By how much a better token was passed over, relative to the spread of the logits, and where.
    """
    for index, (token, followed, row) in enumerate(zip(answer, expected, logits, strict=False)):
        best = int(row.argmax())
        missed = float((row[best] - row[token]) / (row.std() or 1.0))
        if missed > _NEAR_TIE:
            where = {"place": (index,), "found": float(token), "expected": float(best)}
            detail = f"token {index} of the answer is {token}, the package's own logits say {best}"
            return Deviation(relative=missed, **where, shape=answer.shape, expected_shape=expected.shape), detail
        if token != followed:
            return Deviation(relative=0.0, shape=answer.shape, expected_shape=expected.shape), ""
    if len(answer) != len(expected) and len(logits) == len(expected):
        cause = f"the answer ends after {len(answer)} tokens, the reference's after {len(expected)}"
        return Deviation(shape=answer.shape, expected_shape=expected.shape), cause
    return Deviation(relative=0.0, shape=answer.shape, expected_shape=expected.shape), ""
