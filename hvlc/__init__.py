"""hvlc compiles small vision-language models into onnxruntime-genai packages for phones."""

__version__ = "0.1.0"
