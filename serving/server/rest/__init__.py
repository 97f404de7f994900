"""The server's REST front."""
