"""Axis that each angle of a head turns by, where positions follow the grids of images: as configurations say it."""

from collections.abc import Callable
from typing import Any

from hvlc.errors import UserError
from hvlc.export.decoder.shape import GridPositions
from hvlc.export.language import head_width

_AXES = 3

#: Sections of a configuration that names none: angles for time, rows and columns.
Sections = tuple[int, int, int]


def sectioned(default: Sections) -> Callable[[Any], GridPositions]:
    """Reader of axes that follow one another; together they are all angles of a head (Qwen2-VL).

    Args:
        default: sections where the configuration has none.
    """

    def read(config: Any) -> GridPositions:
        sections, angles = _sections(config, default), head_width(config) // 2
        if sum(sections) != angles:
            raise _contradiction(f"mrope_section {list(sections)} is not the {angles} angles of a head")
        return GridPositions.sectioned(sections)

    return read


def interleaved(default: Sections) -> Callable[[Any], GridPositions]:
    """Reader of axes that take turns (Qwen3-VL).

    Args:
        default: sections where the configuration has none.
    """

    def read(config: Any) -> GridPositions:
        settings = config.rope_parameters or {}
        if settings.get("mrope_interleaved", True) is not True:
            raise _contradiction(
                f"mrope_interleaved is {settings['mrope_interleaved']!r:.80}, and the class interleaves"
            )
        return GridPositions.interleaved(_sections(config, default), head_width(config) // 2)

    return read


def _sections(config: Any, default: Sections) -> Sections:
    found = (config.rope_parameters or {}).get("mrope_section", default)
    if not isinstance(found, (list, tuple)) or len(found) != _AXES or any(type(n) is not int or n < 0 for n in found):
        raise _contradiction(f"mrope_section is {found!r:.80}, not three numbers of angles")
    time, rows, columns = found
    return time, rows, columns


def _contradiction(cause: str) -> UserError:
    return UserError("checkpoint.config", f"config.json: {cause}", "correct it")
