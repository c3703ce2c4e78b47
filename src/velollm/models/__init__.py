"""GGUF metadata, memory arithmetic, and models made to measure."""
