"""Rewards: what `--reward` names, and calling them while a model trains."""
