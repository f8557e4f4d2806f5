"""The attention graph as a page and as files."""
