"""The text encoder as a service."""
