"""What the features of a Lorsa do: where they fire, and from which tokens they read."""
