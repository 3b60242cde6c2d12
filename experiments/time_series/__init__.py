"""A GRU-ODE on series whose best prediction is known: `python -m experiments.time_series`."""
