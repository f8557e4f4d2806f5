"""Laws that hold if labels mean what they say; each is seen by running the graph, not by reading it."""
