"""A GRU-ODE on irregular series whose best prediction is known: `python -m experiments.time_series`."""
