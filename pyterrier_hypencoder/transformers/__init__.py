"""What PyTerrier sees: the indexer, the retriever, the scorer and the stages around them."""
