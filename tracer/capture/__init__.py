"""From a live model and one call to a verified graph of ATen operations."""
