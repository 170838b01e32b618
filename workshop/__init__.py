"""Work on iclora itself that its users never run; not installed."""
