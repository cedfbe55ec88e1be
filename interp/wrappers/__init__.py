"""What other libraries put around a module, taken off or stepped around: TransformerLens's bridge, torch.compile."""
