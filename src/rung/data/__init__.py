"""Text in, token ids out: corpora, files and tables, tokenizers, and packed rows for training."""
