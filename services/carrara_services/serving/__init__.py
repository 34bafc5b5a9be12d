"""What all stages share as servers: settings, limits, errors, logs, the server itself. No torch."""
