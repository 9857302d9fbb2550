"""What is on disk: the index directory, its writer and reader, and the neighbour graph."""
