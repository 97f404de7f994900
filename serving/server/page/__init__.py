"""The server's page, where a person shows it an image."""
