"""Image rules of checkpoints, read from what their processors have saved (transformers' image processors)."""

from pathlib import Path
from typing import Any

from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from hvlc.errors import Collector, UserError
from hvlc.export.prompt_tokens import PromptTokens
from hvlc.export.settings import image_settings, processor_document
from hvlc.export.vision_language import Rule
from hvlc.imaging.bounded_grid import BoundedGrid
from hvlc.imaging.fixed import FixedImage
from hvlc.imaging.multiple_tiles import MultipleTiles, OverviewTokens
from hvlc.imaging.native_grid import NativeGrid
from hvlc.imaging.ratio_tiles import RatioTiles
from hvlc.imaging.resize import Resampling
from hvlc.imaging.rule import Normalization
from hvlc.models.numbers import channel_numbers
from hvlc.weights.checkpoint import Checkpoint

_CHANNELS = 3
_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # PIL.Image.Resampling
_LARGEST = 4096  # pixels of a side; MAX_IMAGE_SIZE of transformers' smolvlm and idefics3


def normalization(settings: dict[str, Any], *, as_torch: bool = False) -> Normalization:
    """Normalization of an image processor.

    Args:
        settings: of the processor.
        as_torch: whether it is one of torchvision's, which makes one step of rescaling and normalizing.

    Raises:
        UserError: a number is outside its bounds.
    """
    if settings.get("do_normalize") is False:
        mean, std = [0.0] * _CHANNELS, [1.0] * _CHANNELS
    else:
        mean = channel_numbers(settings.get("image_mean", 0.5), _CHANNELS, least=-1e6, name="image_mean")
        std = channel_numbers(settings.get("image_std", 0.5), _CHANNELS, least=1e-6, name="image_std")
    rescale = 1.0 if settings.get("do_rescale") is False else settings.get("rescale_factor") or 1 / 255
    return Normalization(tuple(mean), tuple(std), rescale, fused=as_torch)


def resampling(settings: dict[str, Any], usual: int, *, as_torch: bool = False) -> Resampling:
    """Resampling of an image processor.

    Args:
        settings: of the processor.
        usual: Pillow's number of the filter where the settings do not name one.
        as_torch: whether it is one of torchvision's, which computes as torch does.

    Raises:
        UserError: the filter is not one that a graph has.
    """
    found = settings.get("resample")
    return Resampling(_FILTERS[usual if found is None else found], width_first=as_torch, short_weights=as_torch)


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


def fixed_image(checkpoint: Checkpoint, config: Any) -> Rule:
    """One image of one size with newlines around it: Gemma 3, without the crops that its processor can add.

    Raises:
        UserError: the processor is missing, contradicts the model or adds crops, or the tokenizer lacks its tokens.
    """
    settings, side = image_settings(checkpoint.directory), config.vision_config.image_size
    found = Collector()
    with found:
        _check_square(settings | {"size": settings.get("size") or {"height": 224, "width": 224}}, side)
    with found:
        _check_count(checkpoint, "image_seq_length", config.mm_tokens_per_image)
    if settings.get("do_pan_and_scan"):
        cause = "the image processor's do_pan_and_scan is true, exported is one image without crops"
        found.problems.append(UserError("checkpoint.processor", cause, "set do_pan_and_scan to false"))
    ids = None
    with found:
        ids = _block_tokens(checkpoint, config)
    found.raise_all()
    start, image, end = found.require(ids)
    rule = FixedImage(
        height=side,
        width=side,
        image_tokens=config.mm_tokens_per_image,
        resampling=resampling(settings, 2),
        normalization=normalization(settings),
        before=(start,),
        image_token=image,
        after=(end,),
    )
    special = frozenset({start, image, end})
    return Rule(rule, image, start, start, special, rule.most_visual_tokens, before="\n\n", after="\n\n")


def _block_tokens(checkpoint: Checkpoint, config: Any) -> list[int]:
    """Ids of the tokens before an image, of a visual token and after an image.

    Raises:
        UserError: the tokenizer lacks some, or has other ids than the configuration.
    """
    tokens, found = PromptTokens(checkpoint.directory), Collector()
    places = {"boi": "<start_of_image>", "image": "<image_soft_token>", "eoi": "<end_of_image>"}
    names = {place: tokens.named(f"{place}_token", usual) for place, usual in places.items()}
    ids = tokens.ids_of(list(names.values()))
    for place, name in names.items():
        with found:
            tokens.check(getattr(config, f"{place}_token_index"), name, f"{place}_token_index")
    found.raise_all()
    return ids


#: Defaults of GotOcr2's image processor.
_GOT_OCR2 = {"min_patches": 1, "max_patches": 12, "image_mean": OPENAI_CLIP_MEAN, "image_std": OPENAI_CLIP_STD}


def got_ocr2_settings(directory: Path) -> dict[str, Any]:
    """The settings of GotOcr2's image processor, its defaults filled in.

    Raises:
        UserError: there are none, or they are of other types, or outside their bounds.
    """
    return _GOT_OCR2 | {key: value for key, value in image_settings(directory).items() if value is not None}


def ratio_tiles(
    checkpoint: Checkpoint, config: Any, settings: dict[str, Any], count: int, placeholder: str | None = None
) -> Rule:
    """Tiles by the nearest aspect ratio, with a thumbnail: InternVL and Qianfan-OCR.

    Their processors always cut, whatever `crop_to_patches` the image processor has saved.

    Args:
        checkpoint: of the model.
        config: of the model.
        settings: of the image processor.
        count: visual tokens that the model makes of a tile.
        placeholder: text that the chat template writes for an image. None: the token of a visual token.

    Raises:
        UserError: the processor contradicts the model, or the tokenizer lacks its tokens.
    """
    side, found = config.vision_config.image_size, Collector()
    with found:
        _check_square(settings, side)
    with found:
        _check_count(checkpoint, "image_seq_length", count)
    fewest, most = settings["min_patches"], settings["max_patches"]
    if fewest > most:
        cause = f"the image processor's min_patches is {fewest}, its max_patches {most}"
        found.problems.append(UserError("checkpoint.processor", cause, "save the processor again"))
    ids = None
    with found:
        ids = _image_tokens(checkpoint, config)
    found.raise_all()
    start, image, end = found.require(ids)
    rule = RatioTiles(
        tile_size=side,
        min_tiles=fewest,
        max_tiles=most,
        tile_tokens=count,
        resampling=resampling(settings, 3),
        normalization=normalization(settings),
        before=(start,),
        image_token=image,
        after=(end,),
    )
    return Rule(rule, image, image, start, frozenset({start, image, end}), rule.most_visual_tokens, placeholder)


def _image_tokens(checkpoint: Checkpoint, config: Any) -> list[int]:
    """Ids of the tokens before an image, of a visual token and after an image.

    Raises:
        UserError: the tokenizer lacks some, or has another id than the configuration.
    """
    tokens = PromptTokens(checkpoint.directory)
    texts = (("start_image_token", "<img>"), ("context_image_token", "<IMG_CONTEXT>"), ("end_image_token", "</img>"))
    names = [tokens.named(setting, usual) for setting, usual in texts]
    ids = tokens.ids_of(names)
    tokens.check(config.image_token_id, names[1], "image_token_id")
    return ids


#: Defaults of Qwen2-VL's image processor.
_QWEN2_VL = {
    "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}


def native_grid(checkpoint: Checkpoint, config: Any, patch: int, merge: int, frames: int) -> Rule:
    """A grid of the image's own shape: the Qwen-VL families.

    Args:
        checkpoint: of the model.
        config: of the model.
        patch: side in pixels of the tower's patches.
        merge: side of the squares of patches that become a visual token.
        frames: of which the tower makes a patch.

    Raises:
        UserError: the processor is missing or contradicts the model, or the tokenizer lacks its tokens.
    """
    settings = {key: value for key, value in image_settings(checkpoint.directory).items() if value is not None}
    settings, found = _QWEN2_VL | settings, Collector()
    with found:
        _check_patches(settings, {"patch_size": patch, "merge_size": merge, "temporal_patch_size": frames})
    bounds, ids = None, None
    with found:
        bounds = _pixel_bounds(settings)
    with found:
        ids = _vision_tokens(checkpoint, config)
    found.raise_all()
    start, image, end = found.require(ids)
    least, most = found.require(bounds)
    rule = NativeGrid(
        cell_size=patch * merge,
        min_pixels=least,
        max_pixels=most,
        resampling=resampling(settings, 3),
        normalization=normalization(settings),
        image_token=image,
    )
    return Rule(rule, image, image, start, frozenset({start, image, end}), rule.most_visual_tokens)


#: Settings of Pixtral's image processor where it does not say otherwise.
_PIXTRAL = {
    "size": {"longest_edge": 1024},
    "image_mean": OPENAI_CLIP_MEAN,
    "image_std": OPENAI_CLIP_STD,
    "patch_size": {"height": 16, "width": 16},
}


def pixtral_settings(directory: Path) -> dict[str, Any]:
    """The settings of Pixtral's image processor, its defaults filled in.

    Raises:
        UserError: there are none, or they are of other types, or outside their bounds.
    """
    return _PIXTRAL | {key: value for key, value in image_settings(directory).items() if value is not None}


def bounded_grid(
    settings: dict[str, Any], image: int, cell: int, row_tokens: tuple[int, int] | None = None
) -> BoundedGrid:
    """A grid of the image's own shape inside a rectangle: models with Pixtral's tower.

    Args:
        settings: of the image processor.
        image: id that stands for a visual token.
        cell: side in pixels of the square behind one visual token.
        row_tokens: ids that end a row of visual tokens, and the last row.

    Raises:
        UserError: the processor keeps images as they are, or asks for another form of a size.
    """
    height, width = _bounds(settings)
    return BoundedGrid(
        cell_size=cell,
        most_height=height,
        most_width=width,
        resampling=resampling(settings, 3),
        normalization=normalization(settings),
        image_token=image,
        row_tokens=row_tokens,
    )


def _bounds(settings: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the rectangle that images are shrunk into.

    Raises:
        UserError: the processor keeps images as they are, crops them, or asks for another form of a size.
    """
    size = settings["size"]
    if settings.get("do_resize") is False or settings.get("do_center_crop"):
        cause = "the image processor keeps images as they are, or crops them"
        raise UserError("checkpoint.processor", cause, "set do_resize to true, and do_center_crop to false")
    found = (size["longest_edge"],) * 2 if size.get("longest_edge") else (size.get("height"), size.get("width"))
    if not all(found):
        cause = f"the image processor resizes to {size}, exported is a longest_edge"
        raise UserError("checkpoint.processor", cause, "set size.longest_edge")
    height, width = found
    return int(height), int(width)


def _check_patches(settings: dict[str, Any], expected: dict[str, int]) -> None:
    """Compare the processor's patches with the tower's.

    Raises:
        UserError: they differ, or the processor keeps images as they are.
    """
    wrong = [f"{key} is {settings[key]}, not {size}" for key, size in expected.items() if settings[key] != size]
    if settings.get("do_resize") is False:
        wrong.append("do_resize is false")
    if wrong:
        cause = f"the image processor contradicts the vision tower: {', '.join(wrong)}"
        raise UserError("checkpoint.processor", cause, "save the processor that belongs to the model")


def _pixel_bounds(settings: dict[str, Any]) -> tuple[int, int]:
    """Fewest and most pixels of an image; `min_pixels` and `max_pixels`, as older versions saved them, win over `size`.

    Raises:
        UserError: one is not said, or they contradict each other.
    """
    size = settings["size"]
    least = settings.get("min_pixels") or size.get("shortest_edge")
    most = settings.get("max_pixels") or size.get("longest_edge")
    if least is None or most is None or least > most:
        cause = f"the image processor bounds images by {least} and {most} pixels"
        raise UserError("checkpoint.processor", cause, "set size.shortest_edge, and size.longest_edge above it")
    return least, most


def _vision_tokens(checkpoint: Checkpoint, config: Any) -> list[int]:
    """Ids of the tokens before an image, of a visual token and after an image.

    Raises:
        UserError: the tokenizer lacks some, or has other ids than the configuration.
    """
    tokens, found = PromptTokens(checkpoint.directory), Collector()
    places = {"vision_start": "<|vision_start|>", "image": "<|image_pad|>", "vision_end": "<|vision_end|>"}
    names = {place: tokens.named(f"{place}_token", usual) for place, usual in places.items()}
    ids = tokens.ids_of(list(names.values()))
    for place, name in names.items():
        with found:
            tokens.check(getattr(config, f"{place}_token_id"), name, f"{place}_token_id")
    found.raise_all()
    return ids


def _check_square(settings: dict[str, Any], side: int) -> None:
    """Compare the size of the processor's tiles with the tower's.

    Raises:
        UserError: they differ, or the processor keeps images as they are.
    """
    size = settings.get("size") or {}
    if settings.get("do_resize") is False or (size.get("height"), size.get("width")) != (side, side):
        cause = (
            f"the image processor resizes to {size}" if settings.get("do_resize") is not False else "do_resize is false"
        )
        fix = "save the processor that belongs to the model"
        raise UserError("checkpoint.processor", f"{cause}, the vision tower takes {side} x {side} pixels", fix)


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
