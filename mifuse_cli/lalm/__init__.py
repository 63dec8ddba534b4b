"""Asking a large audio-language model for emotion distributions: prompts, requests, journal, parsing."""
