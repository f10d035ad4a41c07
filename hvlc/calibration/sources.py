"""Sources of calibration inputs: a name, a file or a directory."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hvlc.calibration.jsonl import JsonlSamples
from hvlc.calibration.prompts import Prompts
from hvlc.calibration.samples import CalibrationSet, DrawnPicture, ImageSample, Sample, StoredPicture, TextSample
from hvlc.calibration.text_windows import builtin_text, evenly_spaced, read_texts, windows
from hvlc.errors import Collector, UserError, nearest
from hvlc.files.reading import is_directory, is_file, reason, shown
from hvlc.graphs.facts import Facts, Kind
from hvlc.zoo import documents

#: Sources that come with hvlc.
BUILT_IN = ("documents", "text")

#: Samples, and tokens of each, where nothing else is said: what GPTQ calibrates on
#: (arXiv:2210.17323, section 4), in windows a quarter as long.
SAMPLES, TOKENS = 128, 512

#: Fewer are refused: the Gram matrix of one sample says what that sample is like, not what inputs are like.
FEWEST = 2

#: Fewer make a warning.
ADVISED = 16

#: Asked about an image that comes without a question.
QUESTION = "Describe the image."

#: Documents that no training of weights and no evaluation saw; `documents.render` never shares a seed between splits.
_SPLIT = "calibration"

_IMAGES = frozenset(".png .jpg .jpeg .webp .gif .bmp .tif .tiff".split())
_PATHS = "or give the path of a .txt or .jsonl file, or of a directory of texts or images"


@dataclass(frozen=True)
class Model:
    """Model for which calibration inputs are made.

    Attributes:
        directory: the checkpoint.
        facts: of its bundle.
        calibrates_encoders: whether its recipe calibrates vision encoders.
    """

    directory: Path
    facts: Facts
    calibrates_encoders: bool = False

    @property
    def kind(self) -> Kind:
        """Purpose of the model."""
        return self.facts.kind

    @property
    def longest(self) -> int | None:
        """Tokens of the language model's context. None: there is no language model."""
        return self.facts.text.context_length if self.facts.text else None

    def prompts(self) -> Prompts | None:
        """Its tokenizer; None where there is no language model.

        Raises:
            UserError: the tokenizer cannot be read.
        """
        return None if self.kind is Kind.VISION else Prompts(self.directory, self.facts)


def open_set(
    source: str, model: Model, *, samples: int = SAMPLES, tokens: int = TOKENS, shorten: bool = False
) -> CalibrationSet:
    """The calibration inputs of a source; everything is read and checked once, images are loaded again when needed.

    Equal sources make equal sets. "text" depends on the version of Python, "documents" on that of Pillow.

    Args:
        source: "documents" (drawn pages, each with a question and its answer), "text" (a small English text, for
            want of one of the model's own domain, which is always better), or a path: a .txt file, a directory of
            those, a .jsonl file (`hvlc.calibration.jsonl`), or a directory of images.
        model: what the inputs are for.
        samples: how many at most, at even distances over the source.
        tokens: length of a window of text in tokens, those that open a text included; also where longer lines end.
        shorten: take windows as long as the model's context where that is shorter, and note it, instead of refusing.

    Raises:
        UserError: the source is unknown, unreadable, empty, too small or of the wrong modality; the problems of a
            file come together, before anything long starts.
    """
    if samples < FEWEST:
        raise _too_few(samples, "were asked for")
    prompts = model.prompts()
    most = model.longest
    notes: tuple[str, ...] = ()
    if shorten and most is not None and tokens > most:
        notes = (f"calibration windows have {most} tokens instead of {tokens}: the model's context is no longer",)
        tokens = most
    _check_length(tokens, model, prompts)
    found = _read(source, model, prompts, samples, tokens)
    if len(found.samples) < FEWEST:
        raise _too_few(len(found.samples), f"are in {source}")
    _check_modality(model, len(found.images), len(found.samples), source)
    return replace(found, notes=(*notes, *found.notes))


def _read(source: str, model: Model, prompts: Prompts | None, samples: int, tokens: int) -> CalibrationSet:
    path = Path(source)
    if source == "documents":
        _check_modality(model, samples, samples, source)
        return CalibrationSet(source, _drawn(prompts, samples))
    if source == "text":
        _check_modality(model, 0, samples, source)
        return _texts(source, [builtin_text()], prompts, samples, tokens)
    if path.suffix.lower() == ".jsonl":
        return _lines(path, model, prompts, samples, tokens)
    if path.suffix.lower() == ".txt" and not is_directory(path):
        _check_modality(model, 0, samples, source)
        return _texts(path.stem, read_texts([path]), prompts, samples, tokens)
    if source and is_directory(path):
        return _directory(path, model, prompts, samples, tokens)
    raise UserError(
        "calibration.unknown", f"there is no calibration source {source!r}", f"{nearest(source, BUILT_IN)}; {_PATHS}"
    )


def _lines(path: Path, model: Model, prompts: Prompts | None, samples: int, tokens: int) -> CalibrationSet:
    lines = JsonlSamples(path)
    _check_modality(model, lines.images, len(lines), str(path))
    found, cut = lines.samples(prompts, samples, tokens)
    notes = (*_fewer(len(found), samples), *([f"{cut} of {len(found)} cut to {tokens} tokens"] if cut else []))
    return CalibrationSet(path.stem, tuple(found), notes)


def _directory(path: Path, model: Model, prompts: Prompts | None, samples: int, tokens: int) -> CalibrationSet:
    files = _files(path)
    texts = [p for p in files if p.suffix.lower() == ".txt"]
    images = [p for p in files if p.suffix.lower() in _IMAGES]
    if not texts and not images:
        cause = f"{path} holds no .txt file and no image"
        raise UserError("calibration.empty", cause, f"known images end in {', '.join(sorted(_IMAGES))}")
    if texts and images:
        cause = f"{path} holds {len(texts)} texts and {len(images)} images"
        raise UserError("calibration.mixed", cause, "separate them, or join them in a .jsonl file")
    _check_modality(model, len(images), len(files), str(path))
    name = path.resolve().name
    if texts:
        return _texts(name, read_texts(texts), prompts, samples, tokens)
    chosen = [images[at] for at in evenly_spaced(len(images), samples)]
    return CalibrationSet(name, tuple(_pictures(chosen, prompts)), _fewer(len(chosen), samples))


def _files(path: Path) -> list[Path]:
    """The files of a directory by name, hidden ones left out.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return sorted(p for p in path.iterdir() if is_file(p) and not p.name.startswith("."))
    except OSError as error:
        raise UserError("calibration.unreadable", f"cannot read {shown(path)}: {reason(error)}", "check it") from error


def _texts(name: str, texts: Sequence[str], prompts: Prompts | None, samples: int, tokens: int) -> CalibrationSet:
    """Windows over all texts, one after another."""
    if prompts is None:
        raise UserError("calibration.modality", f"{name} is text, and the model reads none", "give images")
    opening = np.array(prompts.opening, np.int64)
    length = tokens - len(opening)
    cut = windows("\n\n".join(texts), prompts.encode, length, samples)
    if not cut:
        cause = f"{name} is shorter than one window of {length} tokens"
        raise UserError("calibration.too_short", cause, f"give text for {ADVISED} windows, or lower --tokens")
    found = (TextSample("text", np.concatenate([opening, window])) for window in cut)
    return CalibrationSet(name, tuple(found), _fewer(len(cut), samples))


def _pictures(paths: Sequence[Path], prompts: Prompts | None) -> list[ImageSample]:
    """Images without questions.

    Raises:
        UserError: some cannot be read; all of them at once.
    """
    prompt = prompts.image(QUESTION, None) if prompts else None
    found, samples = Collector(), []
    for path in paths:
        with found:
            samples.append(ImageSample("image", StoredPicture.open(path), QUESTION, None, prompt))
    found.raise_all()
    return samples


def _drawn(prompts: Prompts | None, samples: int) -> tuple[Sample, ...]:
    found = []
    for index, (document, question) in enumerate(documents.examples(_SPLIT, samples)):
        prompt = prompts.image(question.text, question.answer) if prompts else None
        picture = DrawnPicture.of(_SPLIT, index, document.image)
        found.append(ImageSample(document.kind, picture, question.text, question.answer, prompt))
    return tuple(found)


def _check_length(tokens: int, model: Model, prompts: Prompts | None) -> None:
    opening, most = len(prompts.opening) if prompts else 0, model.longest
    if tokens <= opening:
        cause = f"windows of {tokens} tokens leave no room for text after {opening} that open it"
        raise UserError("calibration.tokens", cause, f"ask for more, such as {TOKENS}")
    if most is not None and tokens > most:
        raise UserError(
            "calibration.tokens", f"{tokens} tokens exceed the context of {most}", f"ask for {most} or less"
        )


def _check_modality(model: Model, images: int, samples: int, source: str) -> None:
    """Hold the number of samples with an image against what the model takes, before work is done on them."""
    if model.kind is Kind.LANGUAGE and images:
        cause = f"{source} has {images} images, and {model.directory} reads text alone"
        raise UserError("calibration.modality", cause, "calibrate it on text")
    if model.kind is Kind.VISION and images < samples:
        cause = f"{source} has {samples - images} samples without an image, and {model.directory} reads images alone"
        raise UserError("calibration.modality", cause, "calibrate it on images")
    if model.calibrates_encoders and not images:
        cause = f"{source} has no image, and the recipe calibrates the vision encoders of {model.directory}"
        fix = 'give a .jsonl file or directory with images, or "documents"'
        raise UserError("calibration.modality", cause, fix)


def _too_few(count: int, where: str) -> UserError:
    cause = f"{count} sample{'s' * (count != 1)} {where}, and {FEWEST} are the fewest to learn anything from"
    return UserError("calibration.one_sample", cause, f"give more: {ADVISED} at least, {SAMPLES} are usual")


def _fewer(count: int, wanted: int) -> tuple[str, ...]:
    return (f"{wanted} samples were asked for, and the source has {count}",) if count < wanted else ()
