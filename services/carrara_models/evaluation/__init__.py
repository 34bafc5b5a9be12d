"""Measures of a checkpoint: what its pictures show of captions, how near true pictures they are."""
