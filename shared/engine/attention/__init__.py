"""Attention over the paged cache: `choice.attention_for` takes the fastest kind for a cache."""
