"""Text encoders: a prompt to embeddings; one file per kind of model."""
