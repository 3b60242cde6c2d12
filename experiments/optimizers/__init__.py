"""Studies of OCNOpt: learning rates, the parts of its feedback, DDPNOpt's table, curves."""
