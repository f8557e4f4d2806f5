"""LRP on the graph: a second interpreter, backwards, with one table of relevance rules per paper."""
