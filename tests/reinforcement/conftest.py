"""Own clips, a tiny model, and forked processes for the tests of trainings."""

from own_clips import copied_clips, fork, own_clips, tiny_base, tiny_parts, together

__all__ = ["copied_clips", "fork", "own_clips", "tiny_base", "tiny_parts", "together"]
