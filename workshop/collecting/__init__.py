"""Material with known truth for `iclora collect`, and what it makes of it."""
