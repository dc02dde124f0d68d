"""How it learns: the configuration, the loop and the protocols that measure a recipe on unseen subjects."""
