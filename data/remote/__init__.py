"""Files behind a URL, through fsspec."""
