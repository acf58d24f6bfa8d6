"""Model files: which exist (`registry`), whence they come (`sources`), where they lie (`store`), what they say."""
