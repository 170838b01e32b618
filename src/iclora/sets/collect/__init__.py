"""From what people have (videos, decks, folders, published data sets) to sets that train well."""
