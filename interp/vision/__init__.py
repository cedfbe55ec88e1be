"""What vision models alone have: images of other sizes than their own, attention pooling, classes given as text."""
