"""Figures, drawn by matplotlib (extra `plots`)."""
