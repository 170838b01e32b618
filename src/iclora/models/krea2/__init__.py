"""The Krea 2 family."""
