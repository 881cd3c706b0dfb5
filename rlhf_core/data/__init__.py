"""Rows: where they come from, how they are read, limited and turned into tokens."""
