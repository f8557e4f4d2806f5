"""Passes that bring a captured graph into a plain form, one file each."""
