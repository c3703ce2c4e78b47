"""Draft models for speculative decoding: what is known, what fits, and how to get it."""
