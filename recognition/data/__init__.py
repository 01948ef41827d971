"""From RecordIO on disk to batches: formats, order, decoding, augmentation."""
