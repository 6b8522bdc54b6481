"""Images a second of the input pipeline, ours and others'."""
