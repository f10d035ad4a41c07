"""States of a decoder: what its layers keep of earlier positions, from run to run.

The inputs `past_key_values.N.*` have the outputs `present.N.*` of the run before: keys and values of an attention,
which grow with the sequence, or the last positions that a convolution reads.
"""

from collections.abc import Iterable

PAST, PRESENT = "past_key_values.", "present."
#: Last part of the name of a convolution's state, float `[batch, channels, positions]`.
CONVOLUTION = "conv"


def is_convolution(name: str) -> bool:
    """Whether an input or output is the state of a convolution."""
    return name.startswith((PAST, PRESENT)) and name.rpartition(".")[2] == CONVOLUTION


def empty_shape(dims: Iterable[object], batch: int = 1) -> tuple[int, ...]:
    """Shape of a state before the first position.

    Args:
        dims: of the graph's input: the batch, then sizes; a name stands for positions, of which there are none yet.
        batch: sequences.
    """
    _, *sizes = dims
    return (batch, *(size if isinstance(size, int) else 0 for size in sizes))
