"""Graph transformations and nothing else: no files, no sessions, no models, no printing."""
