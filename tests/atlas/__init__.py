"""The atlas: every model of whole registries, built at toy size, traced, explained and judged.

``python tests/atlas`` runs it; see ``docs/atlas.md`` for the last results.
"""
