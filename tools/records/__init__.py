"""The verbs of tools/rec_builder.py, one file each."""
