"""Text to document vectors and q-nets: the only place that knows transformers and tokenizers."""
