"""Parts that several examples share: test collections, BM25, and adapting MiniLM."""
