"""Text as it comes: read and tokenised ahead of its use, documents of sources that are too large to be gone through."""
