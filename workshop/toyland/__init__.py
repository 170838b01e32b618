"""How toyland was pre-trained and measured."""
