"""Sets made: requests, the session, stories, previews."""
