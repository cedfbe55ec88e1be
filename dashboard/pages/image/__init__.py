"""The page of one image, analysed while one looks."""
