"""What a search says: its page, its figures, and what its choice is worth."""
