"""Nouns to text; nothing here prints."""
