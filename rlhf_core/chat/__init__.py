"""`rlhf chat`."""
