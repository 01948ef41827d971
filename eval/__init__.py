"""Evaluation by the field's protocols."""
