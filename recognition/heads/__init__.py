"""The sharded classification head: margins, the tiled softmax, the centres and their optimiser."""
