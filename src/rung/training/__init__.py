"""Training by gradients: the Hugging Face Trainer, wired for small models on whole corpora."""
