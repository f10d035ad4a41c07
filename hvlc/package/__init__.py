"""Writes and checks the onnxruntime-genai directory, its manifest and digests."""
