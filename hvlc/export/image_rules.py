"""Image rules of checkpoints, read from what their processors have saved (transformers' image processors)."""

from typing import Any

from hvlc.errors import UserError
from hvlc.export.prompt_tokens import PromptTokens
from hvlc.export.settings import image_settings, processor_document
from hvlc.export.vision_language import Rule
from hvlc.imaging.multiple_tiles import MultipleTiles, OverviewTokens
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from hvlc.models.numbers import channel_numbers
from hvlc.weights.checkpoint import Checkpoint

_CHANNELS = 3
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL.Image.Resampling
_LARGEST = 4096  # pixels of a side; MAX_IMAGE_SIZE of transformers' smolvlm and idefics3


def normalization(settings: dict[str, Any]) -> Normalization:
    """How an image processor normalizes.

    Args:
        settings: of the processor.

    Raises:
        UserError: a number is outside its bounds.
    """
    if settings.get("do_normalize") is False:
        mean, std = [0.0] * _CHANNELS, [1.0] * _CHANNELS
    else:
        mean = channel_numbers(settings.get("image_mean", 0.5), _CHANNELS, least=-1e6, name="image_mean")
        std = channel_numbers(settings.get("image_std", 0.5), _CHANNELS, least=1e-6, name="image_std")
    rescale = 1.0 if settings.get("do_rescale") is False else settings.get("rescale_factor") or 1 / 255
    return Normalization(tuple(mean), tuple(std), rescale)


def resampling(settings: dict[str, Any], usual: int) -> Resampling:
    """How an image processor resizes.

    Args:
        settings: of the processor.
        usual: Pillow's number of the filter where the settings do not name one.

    Raises:
        UserError: the filter is not one that a graph has.
    """
    found = settings.get("resample")
    return Resampling(_FILTERS[usual if found is None else found])


def overview_tiles(checkpoint: Checkpoint, config: Any) -> Rule:
    """Tiles with an overview of the whole image: SmolVLM and Idefics3.

    Raises:
        UserError: the processor is missing, contradicts the model, or the tokenizer lacks its tokens.
    """
    settings, tokens = image_settings(checkpoint.directory), PromptTokens(checkpoint.directory)
    side = _edge(settings, "max_image_size", config.vision_config.image_size)
    count = (side // config.vision_config.patch_size // config.scale_factor) ** 2
    _check_count(checkpoint, "image_seq_len", count)
    image = tokens.named("image_token", "<image>")
    fake = tokens.named("fake_image_token", "<fake_token_around_image>")
    overview = tokens.named("global_image_token", "<global-img>")
    tokens.check(config.image_token_id, image, "image_token_id")
    splits = settings.get("do_image_splitting") is not False
    longest = _longest(settings, side)
    most = -(-min(longest, _LARGEST) // side) if splits else 0
    cells = [[f"<row_{r}_col_{c}>" for c in range(1, most + 1)] for r in range(1, most + 1)]
    newline, newlines = tokens.between([(image, "\n", fake), (image, "\n\n", fake)])
    written = OverviewTokens(
        image=config.image_token_id,
        around=(tokens.id_of(fake),),
        overview=(tokens.id_of(overview),),
        row_column=tuple(tuple(tokens.ids_of(row)) for row in cells),
        newline=newline,
        newlines=newlines,
    )
    rule = MultipleTiles(
        tile_size=side,
        longest_edge=longest,
        tile_tokens=count,
        resampling=resampling(settings, 1),
        normalization=normalization(settings),
        tokens=written,
        is_split=splits,
    )
    special = {written.image, *written.around, *written.overview, *newline, *newlines}
    special |= {token for row in written.row_column for token in row}
    return Rule(rule, written.image, written.image, written.around[0], frozenset(special), rule.most_visual_tokens)


def _edge(settings: dict[str, Any], key: str, expected: int) -> int:
    """Side of a tile.

    Raises:
        UserError: the processor's is not the tower's.
    """
    found = (settings.get(key) or {}).get("longest_edge")
    if found != expected:
        cause = f"the image processor's {key}.longest_edge is {found}, the vision tower takes {expected} pixels"
        raise UserError("checkpoint.config", cause, "save the processor that belongs to the model")
    return expected


def _longest(settings: dict[str, Any], side: int) -> int:
    """Longest edge to which an image is resized.

    Raises:
        UserError: the processor keeps images as they are, or asks for another form of a size.
    """
    found = (settings.get("size") or {}).get("longest_edge")
    if settings.get("do_resize") is False or found is None:
        cause = f"the image processor resizes to {settings.get('size')}, exported is a longest_edge"
        raise UserError("checkpoint.processor", cause, "set size.longest_edge, and do_resize to true")
    return int(found)


def _check_count(checkpoint: Checkpoint, key: str, count: int) -> None:
    """Hold the processor's number of visual tokens of a tile against the model's.

    Raises:
        UserError: they differ.
    """
    found = processor_document(checkpoint.directory).get(key)
    if found is not None and found != count:
        cause = f"processor_config.json: {key} is {found}, and the model makes {count} visual tokens of a tile"
        raise UserError("checkpoint.config", cause, "save the processor that belongs to the model")
