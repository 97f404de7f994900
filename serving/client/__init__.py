"""Asks a model server what it sees on images: TensorFlow Serving's, or serving.server's."""

from serving.client.client import Client, Prediction
from serving.client.transport import ClientError

__all__ = ["Client", "ClientError", "Prediction"]
