"""Files to run TensorFlow Serving with: its configs, a compose file, a Kubernetes manifest."""
