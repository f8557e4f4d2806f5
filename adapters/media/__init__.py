"""Pictures, sounds and videos, read from files and made to fit what a model takes."""
