"""A face-recognition trainer: sharded class centres and memory, quality-aware injection."""
