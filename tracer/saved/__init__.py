"""A traced model as a file: an exported program, and beside it as JSON all that was found in it."""
