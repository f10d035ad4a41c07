"""Settings beside the weights of a checkpoint, and which of them are refused: configuration, generation, processor."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers import PreTrainedConfig

from hvlc.errors import UserError
from hvlc.files.reading import is_file
from hvlc.graphs.builder import GraphBuilder
from hvlc.inputs.documents import read_json
from hvlc.models.loading import CONFIG_ERRORS, check_config
from hvlc.models.numbers import Numbers, ProcessorNumbers, channel_numbers, check_numbers
from hvlc.weights.checkpoint import Checkpoint

C = TypeVar("C", bound=PreTrainedConfig)


def read_config(config_class: type[C], checkpoint: Checkpoint, numbers: type[Numbers]) -> C:
    """The configuration of a checkpoint as transformers' own class, its defaults filled in.

    Args:
        config_class: transformers' class.
        checkpoint: whose configuration it is.
        numbers: bounds of what config.json says.

    Raises:
        UserError: a number is outside its bounds, a key would hide a method, or transformers refuses it.
    """
    check_config(checkpoint.config, numbers)
    try:
        config: C = config_class.from_dict(deepcopy(dict(checkpoint.config)))
    except CONFIG_ERRORS as error:
        cause = f"{checkpoint.directory}: {error.__cause__ or error}"
        raise UserError("checkpoint.config", cause, "correct config.json") from error
    return config


def refuse_surplus(b: GraphBuilder, name: str) -> None:
    """Refuse a parameter that the configuration gives no place to; transformers would drop it with a warning.

    A bias of zeros changes nothing (AutoGPTQ stores one for every layer): it is left out with a note.

    Raises:
        UserError: the checkpoint stores it, and it is not a bias of zeros.
    """
    if b.has_zeros(name):
        b.note("biases of zeros are left out, which the checkpoint stores and its architecture does not have")
    elif b.has(name):
        cause = f"the checkpoint stores {name}, its configuration has no place for it"
        raise UserError("checkpoint.surplus", cause, "match config and weights")


def require_positive(config: PreTrainedConfig, *names: str) -> None:
    """Hold dimensions against what any model has.

    Raises:
        UserError: one of them is not a whole number above 0; all of those at once.
    """
    found = {name: getattr(config, name, None) for name in names}
    wrong = [f"{name} is {value!r:.80}" for name, value in found.items() if type(value) is not int or value < 1]
    if wrong:
        raise UserError("checkpoint.config", f"config.json: {', '.join(wrong)}", "give whole numbers above 0")


def end_tokens(directory: Path, config: PreTrainedConfig) -> int | list[int]:
    """Ids that end an answer: of generation_config.json, else of the configuration.

    Raises:
        UserError: neither names one, or one is outside the vocabulary, which onnxruntime-genai refuses.
    """
    path = directory / "generation_config.json"
    generation: Any = read_json(path, "checkpoint.config") if is_file(path) else {}
    found = generation.get("eos_token_id") if isinstance(generation, dict) else None
    found = getattr(config, "eos_token_id", None) if found is None else found
    tokens: list[Any] = found if isinstance(found, list) else [found]
    if not tokens or not all(type(token) is int and 0 <= token < config.vocab_size for token in tokens):
        cause = f"{directory}: the eos_token_id of generation_config.json or config.json is {found!r:.80}"
        raise UserError("checkpoint.config", cause, f"name tokens that end an answer, below {config.vocab_size}")
    return tokens if isinstance(found, list) else tokens[0]


@dataclass(frozen=True)
class Processor:
    """Saved settings of the image processor.

    Attributes:
        mean: of each channel, for values from 0 to 1; None: not said.
        deviation: of each channel, above 0; None: not said.
        normalizes: whether the two are used.
        rescale: factor of each pixel; None: not said, or not rescaled.
        resample: PIL's number of the resampling; None: not said.
        max_visual_tokens: of an image; None: not said.
        sizes: pixels of `tile_size`, `cell_size` and `proxy_size`, as far as they are said.
    """

    mean: list[float] | None
    deviation: list[float] | None
    normalizes: bool
    rescale: float | None
    resample: int | None
    max_visual_tokens: int | None
    sizes: Mapping[str, int]


def processor_settings(directory: Path, channels: int) -> Processor:
    """The image processor's settings, wherever this transformers version put them.

    Args:
        directory: of the checkpoint.
        channels: of an image.

    Raises:
        UserError: they are of other types, or outside their bounds.
    """
    path, settings = _saved_processor(directory)
    check_numbers(ProcessorNumbers, settings, str(path))
    mean, deviation = settings.get("image_mean"), settings.get("image_std")
    factor = settings.get("rescale_factor")
    sizes = {name: settings[name] for name in ("tile_size", "cell_size", "proxy_size") if settings.get(name)}
    return Processor(
        None if mean is None else channel_numbers(mean, channels, least=-1e6, name="image_mean"),
        None if deviation is None else channel_numbers(deviation, channels, least=1e-6, name="image_std"),
        settings.get("do_normalize") is not False,
        None if settings.get("do_rescale") is False else factor,
        settings.get("resample"),
        settings.get("max_visual_tokens"),
        sizes,
    )


def image_settings(directory: Path) -> dict[str, Any]:
    """The settings of an image processor that a family cannot do without, within their bounds.

    A `size` that is one number, as older versions of transformers saved squares, becomes height and width.

    Raises:
        UserError: there are none, or they are of other types, or outside their bounds.
    """
    path, settings = _saved_processor(directory)
    if not settings:
        cause = f"{directory} holds no preprocessor_config.json and no processor_config.json"
        raise UserError("checkpoint.processor", cause, "save the processor beside the model")
    if type(settings.get("size")) is int:
        settings = settings | {"size": dict.fromkeys(("height", "width"), settings["size"])}
    check_numbers(ProcessorNumbers, settings, str(path))
    return settings


def processor_document(directory: Path) -> dict[str, Any]:
    """processor_config.json, where settings of the whole processor stand; {} where there is none.

    Raises:
        UserError: it is damaged.
    """
    path = directory / "processor_config.json"
    content = read_json(path, "checkpoint.config") if is_file(path) else {}
    return content if isinstance(content, dict) else {}


def _saved_processor(directory: Path) -> tuple[Path, dict[str, Any]]:
    """The file of the image processor's settings, and the settings; {} when there are none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = directory / name
        if is_file(path):
            settings = read_json(path, "checkpoint.config")
            found = settings.get("image_processor", settings) if isinstance(settings, dict) else None
            if not isinstance(found, dict):
                raise UserError("checkpoint.config", f"{path} holds no settings", "save the processor again")
            return path, found
    return directory, {}
