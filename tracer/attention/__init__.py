"""Attentions as a user sees them: labelled, typed, named, drawn as a graph."""
