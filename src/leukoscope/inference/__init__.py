"""Prediction: one backbone pass gives the probabilities and their explanation, one rule the decision."""
