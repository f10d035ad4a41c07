"""The inputs that a checkpoint would be calibrated on, and what they are like."""

from collections.abc import Callable
from pathlib import Path

from hvlc.results.calibration_set import Balance
from hvlc.weights.checkpoint import Checkpoint


def show_inputs(
    source: str, directory: Path, *, samples: int, tokens: int, progress: Callable[[int], None] = lambda done: None
) -> Balance:
    """Open a calibration set for a checkpoint and count what is in it.

    Images are counted at their full size: what the resolution compressor makes of them is smaller.

    Args:
        source: as `hvlc.calibration.sources.open_set` takes it.
        directory: the checkpoint.
        samples: how many at most.
        tokens: length of a window of text.
        progress: told how many images are measured.

    Raises:
        UserError: the checkpoint or the source is wrong.
    """
    from hvlc.calibration.balance import balance_of
    from hvlc.calibration.sources import Model, open_set
    from hvlc.export import export_bundle
    from hvlc.workflows.calibrate.sizes import measure_of

    checkpoint = Checkpoint.open(directory)
    facts = export_bundle(checkpoint).facts
    inputs = open_set(source, Model(checkpoint.directory, facts), samples=samples, tokens=tokens)
    return balance_of(inputs, measure_of(facts.image) if facts.image else None, progress)
