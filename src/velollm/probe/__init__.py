"""Machine and server to facts."""
