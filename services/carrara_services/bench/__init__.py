"""`carrara bench`: puts a cascade under load through the SDK and measures how it bears it."""
