"""Judging talks with a strong model: levels that are anchored, evidence that is quoted, disagreement that is told."""
