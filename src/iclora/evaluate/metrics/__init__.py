"""What turns made sets into figures."""
