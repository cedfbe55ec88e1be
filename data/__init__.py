"""What goes in: token streams, image sets, the embedded models and corpora; and where results go, the workspace."""
