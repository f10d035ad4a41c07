"""neural-compressor's GPTQ on a whole model, as its users run it: load, prepare, calibrate, convert.

    python benchmarks/gptq_peer.py CHECKPOINT IDS.npy --block-size 32 --columns 128

`gptq.py` runs it in a process of its own. The linears of the decoder layers become symmetric int4; its defaults leave
embedding and head alone. Nothing is written. It logs each decoder layer when it begins it, to stderr.
"""

import argparse
from pathlib import Path

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("ids", type=Path, help="int64 [samples, tokens]")
    parser.add_argument("--block-size", type=int, default=32, help="input channels that share a scale")
    parser.add_argument("--columns", type=int, default=128, help="solved before the rest of a matrix is corrected")
    options = parser.parse_args()

    import torch
    from neural_compressor.torch.quantization import GPTQConfig, convert, prepare
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    config = GPTQConfig(
        bits=4,
        group_size=options.block_size,
        use_sym=True,
        block_size=options.columns,
        model_path=str(options.checkpoint),  # without it, it looks the empty name up on a hub
    )
    model = prepare(model, config)
    with torch.no_grad():
        for sample in torch.from_numpy(np.load(options.ids)):
            model(sample[None])
    convert(model)


if __name__ == "__main__":
    main()
