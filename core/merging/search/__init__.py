"""Search of merging weights."""
