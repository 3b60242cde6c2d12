"""Studies of networks in continuous time."""
