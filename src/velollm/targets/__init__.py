"""Places where a setting lives: read, write, read back."""
