"""How it answers: one backbone pass gives a prediction and its explanation."""
