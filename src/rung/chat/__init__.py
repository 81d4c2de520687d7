"""Chat models: templates, conversations to train on, preferences, answers, and sessions."""
