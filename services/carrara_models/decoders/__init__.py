"""Decoders: a sample to pixels; one file per kind of model."""
