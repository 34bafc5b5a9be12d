"""The loop that takes many denoising jobs through their steps together."""
