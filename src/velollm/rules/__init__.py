"""Advice with reasons: one small pure rule for each knob (or pair of knobs that must agree)."""
