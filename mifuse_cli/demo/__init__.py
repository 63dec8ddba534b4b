"""Synthetic corpora and a stand-in for the LALM: the whole pipeline without corpus, download or API key."""
