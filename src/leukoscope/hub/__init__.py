"""Publishing releases and Spaces on the Hugging Face Hub."""
