"""What a person meets: the Gradio demo, one file per tab."""
