"""The graph run again: targets, gradients, slices, balanced gradients."""
