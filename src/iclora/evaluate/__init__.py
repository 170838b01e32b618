"""What a good set measures: figures of generated and completed sets, with their intervals."""
