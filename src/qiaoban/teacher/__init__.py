"""Asking a strong model: nothing lost, nothing paid twice, within limits and budget. Collection and judging stand on it."""
