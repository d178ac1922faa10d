"""Corrected labels in, a better model out, or a refusal with reasons."""
