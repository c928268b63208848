"""Exact class-activation maps, their overlays and the files that hold them. Knows nothing of training."""
