"""Model families that hvlc defines itself; everything else comes from transformers."""
