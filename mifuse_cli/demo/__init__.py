"""A synthetic world in which the whole pipeline runs without a corpus, a download or an API key."""
