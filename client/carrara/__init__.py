"""Carrara: text-to-image models, served stage by stage."""
