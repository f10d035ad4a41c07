"""What stands beside the weights of a checkpoint, and what of it is refused: configuration, generation, processor."""

from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from hvlc.errors import UserError
from hvlc.graphs.builder import GraphBuilder
from hvlc.inputs.documents import read_json
from hvlc.weights.checkpoint import Checkpoint

C = TypeVar("C", bound=PreTrainedConfig)


def read_config(config_class: type[C], checkpoint: Checkpoint) -> C:
    """The configuration of a checkpoint as transformers' own class, its defaults filled in.

    Raises:
        UserError: transformers refuses it.
    """
    try:
        config: C = config_class.from_dict(deepcopy(dict(checkpoint.config)))
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, StrictDataclassError) as error:
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
        UserError: one of them is no whole number above 0; all of those at once.
    """
    found = {name: getattr(config, name, None) for name in names}
    wrong = [f"{name} is {value!r}" for name, value in found.items() if not isinstance(value, int) or value < 1]
    if wrong:
        raise UserError("checkpoint.config", f"config.json: {', '.join(wrong)}", "give whole numbers above 0")


def end_tokens(directory: Path, config: PreTrainedConfig) -> int | list[int]:
    """Ids that end an answer: of generation_config.json, else of the configuration.

    Raises:
        UserError: neither names one, or one is outside the vocabulary, which onnxruntime-genai refuses.
    """
    path = directory / "generation_config.json"
    generation: Any = read_json(path, "checkpoint.config") if path.is_file() else {}
    found = generation.get("eos_token_id") if isinstance(generation, dict) else None
    found = getattr(config, "eos_token_id", None) if found is None else found
    tokens: list[Any] = found if isinstance(found, list) else [found]
    if not tokens or not all(isinstance(token, int) and 0 <= token < config.vocab_size for token in tokens):
        cause = f"{directory}: the eos_token_id of generation_config.json or config.json is {found!r}"
        raise UserError("checkpoint.config", cause, f"name tokens that end an answer, below {config.vocab_size}")
    return tokens if isinstance(found, list) else tokens[0]


def processor_settings(directory: Path) -> dict[str, Any]:
    """The image processor's saved settings, wherever this transformers version put them; {} when there are none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (directory / name).is_file():
            settings = read_json(directory / name, "checkpoint.config")
            found = settings.get("image_processor", settings) if isinstance(settings, dict) else None
            if not isinstance(found, dict):
                raise UserError(
                    "checkpoint.config", f"{directory / name} holds no settings", "save the processor again"
                )
            return found
    return {}
