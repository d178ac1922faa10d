"""Scores: accumulators that add, so that shards can be merged."""
