"""Continue a prompt: decoding, sampling, batching, speculative drafts."""
