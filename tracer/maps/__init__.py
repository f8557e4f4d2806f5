"""The weights between tokens of every step: whole, in blocks, or as products."""
