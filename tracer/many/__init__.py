"""Explanations of whole datasets: samples grouped by layout, results on disk as they come, on one machine or
several."""
