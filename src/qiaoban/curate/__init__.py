"""Making raw dialogues fit to learn from: rules first, since they are cheap and can be argued about."""
