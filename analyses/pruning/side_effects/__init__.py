"""What else a drop changes: behaviours by task, features of autoencoders."""
