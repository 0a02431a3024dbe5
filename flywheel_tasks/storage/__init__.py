"""Tables, atomic outputs, objects, checkpoint digests and the model registry."""
