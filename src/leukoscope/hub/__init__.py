"""Where it lives: the model card and the way a release reaches the Hugging Face Hub."""
