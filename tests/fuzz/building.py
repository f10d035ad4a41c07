"""The right end of a command that plans or builds a damaged checkpoint."""

from collections.abc import Sequence

from tests.fuzz.mutation import Ended, check

#: The one process that a plan starts: chat templates are rendered in it, within bounds.
_RENDERING = "chat/worker.py"


def check_build(ended: Ended, codes: Sequence[int] = (0, 2, 3, 4)) -> None:
    """See `check`; chat templates may be rendered in a process of their own.

    Raises:
        AssertionError: another end.
    """
    started = [process for process in ended.started if _RENDERING not in process]
    check(ended._replace(started=started), codes)
