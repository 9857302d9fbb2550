"""Train Hypencoders and bi-encoders by distillation and with contrastive losses (paper, sections 3.5 and 4.2)."""
