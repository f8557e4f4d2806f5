"""Sounds and series under their relevance: what pages and figures draw of them."""
