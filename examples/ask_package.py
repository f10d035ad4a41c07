"""Ask a package a question with onnxruntime, onnxruntime-genai, numpy and Pillow alone.

This is what an application developer ports to Kotlin or Swift: everything it needs to know stands in the
package's hvlc.json.

It trusts the package as it trusts its own code. onnxruntime-genai does what genai_config.json says, which may load a
library or write files, and onnxruntime opens what the graphs name; nothing here looks at either, or at digests. So ask
packages that you built, that your application ships, or that `hvlc verify` passes: it holds every file against its
digest and refuses a configuration, a graph or a file that hvlc does not write. A digest says that a file is the one
that the manifest lists, not who made the package.

    python examples/ask_package.py PACKAGE "What is the total?" receipt.png [--encoder base]
"""

import argparse
import json
import math
import os
import unicodedata
from pathlib import Path

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort
import onnxruntime_genai as og
from PIL import Image, ImageOps


def session(package: Path, file: str) -> ort.InferenceSession:
    """Open one graph of the package on the CPU."""
    return ort.InferenceSession(package / file, providers=["CPUExecutionProvider"])


def load_pixels(path: Path) -> np.ndarray:
    """uint8 [height, width, 3]: upright, 16-bit greys scaled, transparency on white."""
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def see(
    package: Path, manifest: dict, pixels: np.ndarray, question: list[int], encoder: str | None
) -> tuple[np.ndarray, ...]:
    """Features float32 [visual tokens, width] of a uint8 [height, width, 3] image, its prompt ids, its grid."""
    files = {name: entry["file"] for name, entry in manifest["components"].items()}
    images = manifest["images"]
    scale = 0 if images["resolution_compressor"] else 1  # 0 asks the compressor, a scale above 0 is used as it is
    feeds = {
        "image": pixels,
        "scale": np.array([scale], np.float32),
        "max_visual_tokens": np.array([images["max_visual_tokens"]], np.int64),
    }
    if images.get("question_tokens"):  # this compressor looks at the question, too
        feeds["question_ids"] = np.array(question[: images["question_tokens"]], np.int64)
    outputs = ["pixel_values", "image_ids", "grid", "used_scale", *(["overview"] if images["overview"] else [])]
    pieces, ids, grid, used, *whole = session(package, files["front"]).run(outputs, feeds)
    height, width = pixels.shape[:2]
    figures = {
        "visual_tokens": int((ids == images["token"]).sum()),
        "pixels": height * width,
        "aspect": max(height, width) / min(height, width),
        "scale": float(used[0]),
    }
    name = encoder or choose_encoder(manifest["policy"], figures)
    shape = "x".join(map(str, pieces.shape[2:]))  # where images have one of a few grids, each has its own graph
    vision = session(package, files[f"vision_{name}_{shape}"] if images["grids"] else manifest["encoders"][name])
    batch = images.get("tile_batch", 1)
    merger = {"tile_features": encode(vision, pieces, batch), "grid": grid}
    if whole:  # one more piece, of a shape of its own
        merger["overview_features"] = encode(vision, whole[0], batch)
        if not len(pieces):
            merger["tile_features"] = merger["overview_features"][:0]
    return session(package, files["stitch"]).run(None, merger)[0], ids, grid


def encode(vision: ort.InferenceSession, pieces: np.ndarray, batch: int) -> np.ndarray:
    """Features of pieces, `batch` of them a run: peak memory is set by one batch, whatever the image."""
    starts = range(0, len(pieces), batch)
    parts = [vision.run(None, {"pixel_values": pieces[start : start + batch]})[0] for start in starts]
    return np.concatenate(parts) if parts else np.zeros((0, 0, 0), np.float32)


def choose_encoder(policy: dict, figures: dict[str, float]) -> str:
    """The package's own policy: the first rule whose conditions all hold, else the default.

    Conditions about what a caller states (its task, device or time) do not hold: nothing is stated here.
    """
    for rule in policy["rules"]:
        asks_nothing = not rule.keys() & {"task_tag", "device_class", "fits_latency"}
        if asks_nothing and all(
            rule.get(f"above_{name}", -math.inf) < figure < rule.get(f"below_{name}", math.inf)
            for name, figure in figures.items()
        ):
            return rule["encoder"]
    return policy["default"]


def prompt_ids(tokenizer: og.Tokenizer, manifest: dict, question: str, image_ids: np.ndarray) -> np.ndarray:
    """Token ids of the chat prompt, what stands for the image in the place of its placeholder."""
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(json.dumps([{"role": "user", "content": content}]), add_generation_prompt=True)
    form = manifest.get("text", {}).get("normalization")  # what the tokenizer leaves to its host
    text = unicodedata.normalize(form, text) if form else text
    images = manifest["images"]
    before, after = text.split(images["placeholder"])
    ends = tokenizer.encode(before + images["before"]), tokenizer.encode(images["after"] + after)
    return np.array([*ends[0], *image_ids, *ends[1]], np.int32)


def position_table(ids: np.ndarray, token: int, grid: np.ndarray, context: int) -> np.ndarray:
    """Time, row and column of every position of a decoder of fixed shapes, int32 [3, context].

    Visual tokens share one time and have the rows and columns of the image; what follows counts on from the largest.
    """
    rows, columns = grid
    first = int(np.argmax(ids == token))
    table = np.tile(np.arange(context), (3, 1))
    table[:, first + rows * columns :] += max(rows, columns) - rows * columns
    steps = np.stack([np.zeros(rows * columns, int), *np.indices((rows, columns)).reshape(2, -1)])
    table[:, first : first + rows * columns] = first + steps
    return table.astype(np.int32)


def main() -> None:
    """Print the answer, piece by piece."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path)
    parser.add_argument("question")
    parser.add_argument("image", type=Path)
    parser.add_argument("--encoder", help="vision encoder (default: the package's policy)")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    arguments = parser.parse_args()

    manifest = json.loads((arguments.package / "hvlc.json").read_text("utf-8"))
    pixels = load_pixels(arguments.image)
    model = og.Model(str(arguments.package))
    tokenizer = og.Tokenizer(model)
    question = tokenizer.encode(arguments.question).tolist()
    features, image_ids, grid = see(arguments.package, manifest, pixels, question, arguments.encoder)
    ids = prompt_ids(tokenizer, manifest, arguments.question, image_ids)
    inputs = og.NamedTensors()
    inputs["input_ids"] = ids[None]
    inputs["num_image_tokens"] = np.array([len(features)], np.int64)
    inputs["host_image_features"] = features
    config = json.loads((arguments.package / "genai_config.json").read_text("utf-8"))["model"]
    is_fixed = "pipeline" in config["decoder"]  # shapes are, and so is the length of the cache
    if manifest["images"].get("grid_positions"):  # positions of tokens follow the rows and columns of the image
        if is_fixed:
            inputs["position_table"] = position_table(ids, manifest["images"]["token"], grid, config["context_length"])
        else:
            inputs["image_grid_thw"] = np.array([[1, *grid]], np.int64)

    parameters = og.GeneratorParams(model)
    length = config["context_length"] if is_fixed else len(ids) + arguments.max_new_tokens
    parameters.set_search_options(max_length=length, do_sample=False)
    generator = og.Generator(model, parameters)
    generator.set_inputs(inputs)
    end = np.atleast_1d(config["eos_token_id"])
    stream = tokenizer.create_stream()
    for _ in range(arguments.max_new_tokens):
        if generator.is_done():
            break
        generator.generate_next_token()
        token = generator.get_next_tokens()[0]
        if token not in end:
            print(stream.decode(token), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
