"""Training by gradients: the Hugging Face Trainer, set up for small models on whole corpora."""
