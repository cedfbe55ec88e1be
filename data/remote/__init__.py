"""Files behind a URL, through fsspec."""

from pathlib import Path

Folder = str | Path
"""A local folder, or the URL of one; a command's option of this type keeps a URL's two slashes, as a Path would not."""
