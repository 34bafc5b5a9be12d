"""The decoder as a service."""
