"""What cutting a network to its depth is worth, for what it costs: see `__main__`."""
