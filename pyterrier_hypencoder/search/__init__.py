"""Search: decide which documents of a collection the q-nets score.

Its modules use only arrays and scoring callables: no data frames, texts, files or PyTerrier.
"""
