"""Faces drawn from numbers: who it is (identity), how it was seen (scene), how well it was recorded (quality)."""
