"""What a curated folder holds, told to people: a page of figures, a dataset card, and what was assessed of its safety."""
