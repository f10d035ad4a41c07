"""Write and check the onnxruntime-genai directory, its manifest and digests."""
