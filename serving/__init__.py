"""From a finished run to a served model: SavedModels for TensorFlow Serving, a server, a client."""
