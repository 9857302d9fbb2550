"""The index directory on disk: writer, reader, docnos and neighbour graph."""
