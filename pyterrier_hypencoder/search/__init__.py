"""Search: decide which documents of a collection the q-nets score.

The modules of this wing know arrays and scoring callables only: no data frames, texts, files or PyTerrier.
"""
