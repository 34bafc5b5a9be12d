"""Generators: embeddings and noise to a sample; one file per kind of model."""
