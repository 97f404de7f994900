"""An embedded server in TensorFlow Serving's protocol: `python -m serving.server`."""
