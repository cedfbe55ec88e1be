"""What a training will take, before it is started: memory, arithmetic, traffic and time."""
