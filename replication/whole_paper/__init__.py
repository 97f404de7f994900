"""The whole paper by one command: its steps, their plan, their work, the claims and the page."""
