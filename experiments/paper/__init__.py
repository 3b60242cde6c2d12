"""The stage-cost paper's tables and figures: `python -m experiments.paper --help`."""
