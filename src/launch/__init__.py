"""How arms are run: one process each, in slots, watched, and ended together. Knows nothing of networks or verdicts."""
