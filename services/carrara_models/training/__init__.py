"""Trains the three parts of a text-to-image model separately, on the drawn world."""
