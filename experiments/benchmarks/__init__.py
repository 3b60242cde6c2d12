"""Time and memory of training steps, by ratio in one process."""
