"""Parts that several examples share: test collections, BM25, training rows, and adapting MiniLM."""
