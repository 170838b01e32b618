"""Image sets and their words: layouts, captions, recipes, datasets."""
