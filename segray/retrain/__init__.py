"""Retraining: from corrected labels to a promoted model, or a refusal with reasons."""
