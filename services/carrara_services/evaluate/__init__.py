"""`carrara evaluate`: paints through the SDK, as any application does, and measures."""
