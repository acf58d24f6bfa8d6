"""Dialogues from any strong model, varied by design: plan cards, ask a teacher, keep every paid answer."""
