"""The rules over the steps, on whole matrices or on single rows."""
