"""Training of the reference checkpoint: read, transcribe, answer, agree, choose a resolution."""
