"""Names of a checkpoint's files: what is read, and so what is fetched."""

from hvlc.files.reading import DOCUMENT, TEMPLATE, TOKENIZER

#: Every file that a build reads besides the weights, and the most bytes that it may have.
SETTINGS = {
    "config.json": DOCUMENT,
    "generation_config.json": DOCUMENT,
    "quantize_config.json": DOCUMENT,
    "quant_config.json": DOCUMENT,
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": DOCUMENT,
    "special_tokens_map.json": DOCUMENT,
    "chat_template.jinja": TEMPLATE,
    "processor_config.json": DOCUMENT,
    "preprocessor_config.json": DOCUMENT,
}
#: The weights in one file, and the index of those in several.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
