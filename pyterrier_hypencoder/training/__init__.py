"""Training of Hypencoders and bi-encoders, by distillation and contrast (paper, sections 3.5 and 4.2)."""
