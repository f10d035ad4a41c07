"""Run a package with onnxruntime and onnxruntime-genai; torch is never imported."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # both wheels send telemetry unless told not to before import
