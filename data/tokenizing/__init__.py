"""What a tokenizer says of the texts that a model reads: the token they begin with, and how a conversation is written."""

from attlas.data.tokenizing.bos import begun, bos_of, without_bos
from attlas.data.tokenizing.chat import Render, conversation, render, renderer

__all__ = ["Render", "begun", "bos_of", "conversation", "render", "renderer", "without_bos"]
