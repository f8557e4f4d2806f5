"""A small page on this machine alone: type a text or drop a picture, pick an answer, look."""
