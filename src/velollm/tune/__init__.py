"""Search and selection by measuring."""
