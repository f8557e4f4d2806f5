"""Rules that look around in the graph: what several operations mean together."""
