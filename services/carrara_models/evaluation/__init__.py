"""Measures of a checkpoint: what of the captions its pictures show."""
