"""The page of circuits: prompts, traces, graphs."""
