"""Build the shipped checkpoint, ask it about a page, and measure what 4 bits cost: hvlc from Python.

Runs as a script (`python examples/notebook.py`), and cell by cell in an editor that knows `# %%`.
"""

# %%
import tempfile
from pathlib import Path

import hvlc
from hvlc.evaluation.tasks import open_task

work = Path(tempfile.mkdtemp(prefix="notebook-"))

# %% Two packages of one checkpoint: float32, and int4 by rounding to nearest.
small = hvlc.build(None, work / "w4a16-rtn", recipe="w4a16-rtn")
hvlc.build(None, work / "float32", recipe="float32")
print(f"{small.manifest.total_bytes / 1e6:.1f} MB, {small.manifest.bits_per_decoder_weight:.2f} bits a decoder weight")

# %% A page that nobody has trained on, and a question about it.
example = open_task("documents").example(0)
answer = hvlc.open(work / "w4a16-rtn").ask(example.question, images=example.images)
print(f"{example.question} {answer.text} (expected {example.answers[0]}; {answer.visual_tokens} visual tokens)")

# %% Scores against float32 on 16 held-out documents.
found = hvlc.evaluate(work / "w4a16-rtn", reference=work / "float32", encoders=["base"], count=16)
for one in found.shown:
    print(f"{one.label}: {one.summary.exact_match.value:.1%} right")
