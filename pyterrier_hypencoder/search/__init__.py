"""Which documents are evaluated: searches take a scoring callable and arrays, and know nothing of frames or text."""
