"""Engines that VeloLLM can talk to, one file each."""
