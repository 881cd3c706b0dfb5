"""Models: what a name or folder means, loading, the reference, merging an adapter."""
