"""The HTML pages: one look, pictures inside, nothing runs."""
