"""Own clips, a tiny model, and forked processes for the tests of commands."""

from own_clips import own_clips, tiny_base, together

__all__ = ["own_clips", "tiny_base", "together"]
