"""The server: a durable queue, an HTTP API in front of it, workers that hold a base behind it."""
