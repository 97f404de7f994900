"""The server's gRPC front."""
